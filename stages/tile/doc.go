// Package tile cuts scans into patches that are only tags: NewGrid lays overlapping tiles over a volume, flush with both
// ends, and Tiles gives a volume's patches, on that grid or at random places. No voxel is copied here.
//
// Axes are x, y, z; sizes and offsets are in voxels.
package tile
