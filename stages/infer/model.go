package infer

// Reconstructor is what Blend runs patches through. Sizes are x, y, z in voxels; voxels are [D, H, W] in [-1, 1] of the window,
// latents lie on a grid of one for Downsample voxels and have Depth codes each. It is not for concurrent use.
type Reconstructor interface {
	Patch() [3]int
	Downsample() [3]int
	Depth() int
	// Reconstruct runs n patches; dst may be src. codes [n, z, y, x, depth] may be nil. A patch's result doesn't depend on the others.
	Reconstruct(dst, src []float32, n int, codes []int32) error
}

// Model is what a scan is run through: vqgan.Coder, or Identity.
type Model interface {
	Reconstructor
	Codes() int          // in the codebook
	Channels() int       // of a latent
	Fingerprint() string // of what results depend on

	// Tileable says that results depend on a neighbourhood only. Fields are how far it goes along each axis: voxels around
	// those that a code stands for, a multiple of Downsample, and codes around that of a voxel.
	Tileable() bool
	Fields() (encoder, decoder [3]int)

	// Encode gives the codes [z, y, x, depth] of any size up to Patch and, where those aren't nil, latents [z, y, x, channel] before and after
	// quantisation.
	Encode(idx []int32, latents, quantised, src []float32, size [3]int) error
	// Decode goes back from idx or, where it isn't nil, from quantised.
	Decode(dst []float32, idx []int32, quantised []float32, size [3]int) error
}

func product(n [3]int) int { return n[0] * n[1] * n[2] }
