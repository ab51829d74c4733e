// Package nifti reads and writes NIfTI-1 and NIfTI-2 images: .nii, .nii.gz and .hdr/.img pairs, of either byte order.
//
// The way in: [ReadHeader] or [Open] finds the files, sniffs gzip and byte order, and parses and checks a [Header];
// [Header.Grid] says which voxels are the 3D image, [Header.Affine] where they lie in the world, [Canonical] how they
// turn to RAS+; a [Reader] then streams them in file order, a few rows at a time, and its Finish says whether all of
// the file was sound. The way out: [Header.Derive] makes a header for a result and [Create] a [Writer] that streams
// voxels under a temporary name and renames at the end.
//
// Nothing that a file says is believed before it is compared with what the file holds: sizes are multiplied with
// overflow checks, capped, and compared with the bytes on disk; the gzip checksum is always verified.
//
// Reading order: header.go and affine.go; reader.go, stream.go (a file's bytes in order, unzipped ahead by package inflate) and decode.go
// (bytes to numbers); encode.go and writer.go.
//
// Formats: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h.
package nifti
