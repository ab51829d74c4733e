// Package metrics measures how near a reconstruction is to its original: PSNR, 3D SSIM, fine structure, L1, MAE in HU over
// all voxels and by tissue, whole, inside the body and pooled over scans; whether tiles left seams; what the codes cost and
// how much of a codebook is used; and the naive baseline that a model has to beat.
//
// Images are float32 in [-1, 1], the ends of a stated window in HU, with x fastest: index (z*ny + y)*nx + x. Sizes are
// x, y, z. Both images are clipped to the window before anything is measured, so no measure rewards or punishes what
// the window hides; which tissue a voxel is follows from its original before that, where it is given. All sums are
// float64, and no result depends on the number of workers.
//
// There are two ways in. A Meter takes patches (validation in training): meter.go, measures.go, tissue.go, seam.go,
// ssim.go and hfen.go on slide.go (a window that passes over slices). Measure is the stage that sees merged volumes pass slab by slab (reconstruction): measure.go holds its
// contract, scan.go what it does for one scan, summary.go the results, write.go and table.go their files and their
// table. usage.go and trilinear.go stand alone; SSIM and HFEN, too, may be had by who measures volumes of his own.
package metrics
