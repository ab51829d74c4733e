package enginetest

import (
	"math/rand/v2"

	"github.com/flowrun/flowrun/gpu"
)

// benchGAN times what a GAN's step does beside convolutions: a 3D discriminator at 64×64×32 patches, VGG on 64×64 slices, SSIM of a patch.
// Work is what an op must read and write.
func benchGAN(run timed) {
	rng := rand.New(rand.NewPCG(2, 2))
	patch := gpu.Dims{N: 2, D: 32, H: 64, W: 64, C: 1}
	features := gpu.Dims{N: 2, D: 17, H: 33, W: 33, C: 64}
	images := gpu.Dims{N: 12, D: 1, H: 64, W: 64, C: 64}
	in := func(r *rig, d gpu.Dims) gpu.Tensor { return r.put(d, 1, gpu.Zero, r.random(rng, d.Len())) }
	size := func(d gpu.Dims, tensors int64) int64 { return 4 * tensors * int64(d.Len()) }

	batch := gpu.Norm{Batch: true, Plain: true, Eps: 1e-5}
	run("BatchNorm/Forward", "GB/s", size(features, 2), func(r *rig) func() {
		x, y, gamma, beta := in(r, features), in(r, features), r.floats(r.random(rng, 64)), r.floats(r.random(rng, 64))
		stats := r.alloc(r.e.NormStats(batch, features))
		return func() { r.e.NormAct(batch, x, gamma, beta, stats, y) }
	})
	run("BatchNorm/Grad", "GB/s", size(features, 3), func(r *rig) func() {
		x, y, dx, gamma, beta := in(r, features), in(r, features), in(r, features), r.floats(r.random(rng, 64)), r.floats(r.random(rng, 64))
		stats, work := r.alloc(r.e.NormStats(batch, features)), r.alloc(r.e.NormWork(batch, features))
		r.e.NormAct(batch, x, gamma, beta, stats, y)
		return func() { r.e.NormActGrad(batch, x, gamma, beta, stats, y, nil, dx, gamma, beta, work) }
	})
	run("Activate/Forward", "GB/s", size(features, 2), func(r *rig) func() {
		x, y := in(r, features), in(r, features)
		return func() { r.e.Activate(0.2, x, y) }
	})
	run("Activate/Grad", "GB/s", size(features, 3), func(r *rig) func() {
		y, dy, dx := in(r, features), in(r, features), in(r, features)
		return func() { r.e.ActivateGrad(0.2, y, dy, nil, dx) }
	})
	run("Combine", "GB/s", size(features, 3), func(r *rig) func() {
		x, y, s := in(r, features), in(r, features), r.floats([]float64{0.5})
		return func() { r.e.Combine(x, y, s, y) }
	})
	pooled := images
	pooled.H, pooled.W = images.H/2, images.W/2
	run("MaxPool/Forward", "GB/s", size(images, 1)+size(pooled, 1), func(r *rig) func() {
		x, y := in(r, images), in(r, pooled)
		return func() { r.e.MaxPool(x, y) }
	})
	run("MaxPool/Grad", "GB/s", size(images, 2)+size(pooled, 1), func(r *rig) func() {
		x, dy, dx := in(r, images), in(r, pooled), in(r, images)
		return func() { r.e.MaxPoolGrad(x, dy, nil, dx) }
	})
	run("PerceptualLoss", "GB/s", size(images, 3), func(r *rig) func() {
		a, b, da := in(r, images), in(r, images), in(r, images)
		w, scale, out, work := r.floats(r.random(rng, images.C)), r.floats([]float64{1}), r.alloc(4), r.alloc(r.e.LossWork(images))
		return func() { r.e.PerceptualLoss(a, b, w, scale, nil, &da, out, work) }
	})
	run("SliceGrad", "GB/s", size(patch, 1), func(r *rig) func() {
		plane := gpu.Dims{N: 8, D: 1, H: patch.D, W: patch.H, C: 1}
		dy, dx, at := in(r, plane), in(r, patch), r.floats([]float64{1, 5, 9, 30, 2, 3, 4, 60})
		return func() { r.e.SliceGrad(2, dy, at, nil, dx) }
	})
	run("Tint", "GB/s", 4*size(patch, 1), func(r *rig) func() {
		many := patch
		many.C = 3
		x, y, c := in(r, patch), in(r, many), r.floats(r.random(rng, 3))
		return func() { r.e.Tint(x, c, c, y) }
	})
	similar := gpu.Similarity{Weights: []float64{0.3, 0.7}}
	run("SimilarityLoss", "GB/s", size(patch, 3), func(r *rig) func() {
		y, t, dy := in(r, patch), in(r, patch), in(r, patch)
		scale, out, work := r.floats([]float64{1}), r.alloc(4), r.alloc(r.e.SimilarityWork(similar, patch))
		return func() { r.e.SimilarityLoss(similar, y, t, scale, &dy, out, work) }
	})
	const rows, columns = 64 * 256, 512
	run("Spectral/Forward", "GB/s", 4*2*rows*columns, func(r *rig) func() {
		w, u, v := r.floats(r.random(rng, rows*columns)), r.floats(r.random(rng, columns)), r.floats(r.random(rng, rows))
		out, sigma, work := r.alloc(4*rows*columns), r.alloc(4), r.alloc(r.e.SpectralWork(rows, columns))
		return func() { r.e.Spectral(w, rows, columns, u, v, out, sigma, work) }
	})
	run("Spectral/Grad", "GB/s", 4*3*rows*columns, func(r *rig) func() {
		g, u, v := r.floats(r.random(rng, rows*columns)), r.floats(r.random(rng, columns)), r.floats(r.random(rng, rows))
		out, sigma, work := r.floats(r.random(rng, rows*columns)), r.floats([]float64{1}), r.alloc(r.e.SpectralWork(rows, columns))
		return func() { r.e.SpectralGrad(g, out, rows, columns, u, v, sigma, work) }
	})
	latent := gpu.Dims{N: 2, D: 8, H: 16, W: 16, C: 6}
	run("Round", "GB/s", size(latent, 2), func(r *rig) func() {
		k := gpu.Scalar{Levels: []int{8, 8, 8, 5, 5, 5}}
		z, q, idx := in(r, latent), in(r, latent), r.alloc(4*int64(latent.Voxels()))
		return func() { r.e.Round(k, z, idx, q, -1) }
	})
}
