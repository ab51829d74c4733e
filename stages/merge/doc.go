// Package merge puts what a model made of overlapping patches back together: a weighted sum, slice by slice, that
// leaves as soon as it is finished.
//
// The weights are separable and normalised along each axis, so that over the grid they sum to one at every voxel: the
// accumulator only adds, and nothing is divided at the end. It adds in fixed point, int32 in steps of 2^-30. Integer
// sums don't depend on their order, so the bits of the result are the same for any order of arrival, batch size and
// number of workers, and no patch waits for another.
//
// A voxel that n tiles cover differs from the exact sum by at most n·2^-31, and by half a unit in the last place of
// the float32 that it becomes: with the usual 8 tiles 4e-9 + 3e-8, under one such unit of full scale.
//
// Reading order: options.go (the keys of the stage), window.go (weights along an axis), grid.go (which tiles are taken, and the memory
// for them), merge.go, add.go (the loops), workers.go.
package merge
