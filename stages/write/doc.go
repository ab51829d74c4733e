// Package write writes merged volumes as NIfTI over the scans that they were made from: on the scan's own grid, with
// its orientation and affine, so that a viewer shows one over the other voxel for voxel.
//
// The way out: slabs come in canonical (RAS+) axes and in [-1, 1]; a volume that was resampled is brought back to the
// scan's voxel size; voxels become HU and go to their places in the scan's axes; [nifti.Writer] streams them to the
// file. Where the scan's slowest axis is z and runs upwards, one slice is held at a time. In any other orientation the
// first voxels of the file are known last, and the whole volume is held, as int16 (or float32, where that is written).
//
// Reading order: options.go (the keys of the stage), names.go (what files are called), write.go (slabs in, files out), image.go (from
// canonical axes to the file's), hu.go (from [-1, 1] to what is stored).
package write
