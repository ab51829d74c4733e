// Package volume holds the elements that flow between stages: Scan, Volume, Patch, Batch and Snapshot in training; Output,
// Slab and Codes on the way back; and Grid, where the tiles of a volume lie, of which tile, infer and merge speak. It is a leaf: it
// imports nothing of flowrun, and every stage imports it.
//
// Every [3] here is x, y, z, as in NIfTI and as users write it; samples have x fastest. Float buffers of a Batch are
// [N, D, H, W] = n, z, y, x, so they too have x fastest. Intensities are in Hounsfield units (HU) until a Batch scales
// them by the window to [-1, 1].
//
// An element that owns memory has Release. Whoever receives an element owns one reference and either passes it on or
// releases it, once.
//
// Reading order: scan.go, volume.go, patch.go (Tag, Patch, Batch), grid.go, snapshot.go; output.go, codes.go; key.go (randomness by
// what it is for), window.go.
package volume
