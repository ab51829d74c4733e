// Package infer runs a trained model over whole scans.
//
// Blend gives what the model makes of each patch of a batch; stages/merge weighs the overlaps. That serves any model.
//
// Where a result depends only on a neighbourhood of known size (Model.Tileable), there is an exact way. Encode runs tiles
// that overlap by twice what a code sees, takes from each the codes that saw nothing of its borders, and so makes the one code
// grid that the whole volume would have given at once. Decode goes back likewise. Neither depends on the tiles' size or
// order, to the bit where the engine's results don't, and there is nothing to blend. The volume is padded only to whole
// codes, never to a patch. Faces of the padded volume are the only ones at which the network pads: a tile that ends there
// ends as the volume does.
//
// Codes of other models are kept tile by tile, and Decode gives their overlapping tiles back to be blended.
//
// Reading order: options.go (the keys of the stages), model.go, identity.go, grid.go, blend.go, encode.go, decode.go.
package infer
