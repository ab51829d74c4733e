// Package read brings scans in: it finds them, reads and checks them whole, turns them to canonical (RAS+) axes and
// holds them as int16, in memory or in a cache file.
//
// The way in: [List] finds the files and reads their headers, once, when a run starts; [Load] reads one scan's voxels,
// [Stream] gives them slice by slice to those who need not hold them. What can't be read becomes a line of the [Quarantine]. The way
// out: [Restore] brings a result back from the voxel size that was trained on to the scan's own.
//
// Types of 8 and 16 bits are held as they are, with the file's scaling beside them. Other types, and what is resampled,
// are clipped to the window and rounded to int16 in steps of a power of two: the finest that spans the window, 1/32 HU
// for [-1000, 1000], so that whole HU are exact.
//
// Reading order: options.go (the keys of the stage), find.go, list.go and copies.go (which scans), load.go and again.go (a scan whole,
// tried again), stream.go, resample.go, cache.go; quarantine.go.
package read
