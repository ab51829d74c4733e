// Package metrics measures how near a reconstruction is to its original: PSNR, 3D SSIM, L1 and MAE in HU, over whole
// scans, inside the body and pooled; how much of a codebook is used; and the naive baseline that a model has to beat.
//
// Images are float32 in [-1, 1], the ends of a stated window in HU, with x fastest: index (z*ny + y)*nx + x. Sizes are
// x, y, z. Both images are clipped to the window before anything is measured, so no measure rewards or punishes what
// the window hides. All sums are float64, and no result depends on the number of workers.
//
// Read meter.go first, then ssim.go; usage.go and trilinear.go stand alone.
package metrics
