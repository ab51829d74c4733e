// Package gpu is the contract between the model and what computes it: an Engine executes ops on tensors that lie in one
// arena. gpu/cpu is an Engine on the CPU and the reference, gpu/nn turns a model into a program of these ops,
// gpu/enginetest holds every Engine to the same answers.
//
// Layout. Activations are N, D, H, W, C = n, z, y, x, c with c fastest. A tensor may have a halo: columns in front of
// and behind each row (along W), already filled, so that convolution kernels don't branch there; along D and H
// the kernels clamp or skip rows. How many bytes that takes is the engine's to say (Bytes).
//
// Determinism. Every op's result depends on its operands and their shapes only: never on the number of threads or on
// timing. What a convolution gives at one output voxel doesn't depend on the extent of the tensor around it.
//
// Numbers that change from one run of a program to the next (scale, in most ops) are floats in the arena, so that the same
// calls can be made again, or recorded once.
//
// Errors. Ops have no error results: wrong shapes are found when a program is built, so an op that meets one panics, and a
// device that fails does so at Sync. Offsets are bytes in the arena, multiples of Align.
package gpu

// Align is the alignment of every Ptr, in bytes.
const Align = 256

// Ptr is a byte offset into an engine's arena.
type Ptr int64

// Dims is the extent of an activation.
type Dims struct{ N, D, H, W, C int }

// Voxels is N*D*H*W.
func (d Dims) Voxels() int { return d.N * d.D * d.H * d.W }

// Len is the number of elements.
func (d Dims) Len() int { return d.Voxels() * d.C }

// Padding says what a halo, and what lies outside along D and H, holds.
type Padding uint8

// The paddings. Activations use Replicate (the nearest voxel) or Zero, gradients Zero.
const (
	Zero Padding = iota
	Replicate
)

// Type is how a tensor's elements are stored.
type Type uint8

// The types. Parameters, statistics, losses and codebooks are always Float32.
const (
	Float32 Type = iota
	BFloat16
)

func (t Type) String() string { return [...]string{"float32", "bfloat16"}[t] }

// Tensor is an activation or a gradient in the arena. Every op that writes a tensor also fills its halo according to Pad.
type Tensor struct {
	Dims
	Halo int     // columns in front of and behind each row
	Pad  Padding // what the halo holds
	Type Type
	At   Ptr
}

// Conv describes a convolution, or a transposed one, of In to Out. Weights are [Kz, Ky, Kx, Ci, Co] float32 at a Ptr.
// Per axis, with input i and output o (indices may lie Lo below or, at the other end, outside the input: Pad says what is there):
//
//	convolution: out[o] = Σk in[o*S - Lo + k] · w[k]
//	transposed:  out[o] = Σ in[i] · w[k] over all i, k with o = i*S - Lo + k, i from -1 (-2 where S is 1) to the size (inclusive)
//
// The shapes in use are k1 s1 Lo 0; k3 s1 Lo 1; k4 s2 Lo 1; k4 s1 Lo 2 (an axis that is not downsampled); transposed
// k4 s2 Lo 1 and k4 s1 Lo 1; and in discriminators, with Zero padding, k4 s2 Lo 2 to Out = In/2+1 and k4 s1 Lo 2 to Out =
// In+1; each axis by itself. A 2D convolution has D = 1 and k1 along it, its images along N.
type Conv struct {
	In, Out    Dims
	K, S, Lo   [3]int // z, y, x
	Transposed bool
	Pad        Padding
	Type       Type // of the input, and of what is multiplied; sums are float32
}

// Halo is the halo that the input of the convolution must have along W: what its taps can reach.
func (c Conv) Halo() int {
	switch {
	case c.K[2] == 1:
		return 0
	case c.K[2] == 4 && (c.S[2] == 1 || c.Lo[2] == 2):
		return 2
	}
	return 1
}

// Taps is the number of weights per pair of channels.
func (c Conv) Taps() int { return c.K[0] * c.K[1] * c.K[2] }

// FLOPs is the number of floating-point operations of one forward pass, two for each product and sum.
func (c Conv) FLOPs() int64 {
	d := c.Out
	if c.Transposed {
		d = c.In
	}
	return 2 * int64(d.Voxels()) * int64(c.Taps()) * int64(c.In.C) * int64(c.Out.C)
}

// ConvSizes is the memory that an engine wants for a convolution, in bytes, beside its operands.
type ConvSizes struct {
	Packed     int64 // weights packed for the forward pass, once a step
	PackedGrad int64 // weights packed for the input gradient
	Workspace  int64 // scratch for the weight gradient
}

// Norm describes a normalisation with affine parameters, followed by SiLU: y = silu(γ·x̂ + β).
//
// Groups > 0 is GroupNorm: x̂ = (x-mean)/√(var+Eps) over D, H, W and the channels of a group, for each sample.
// Groups = 0 is the channel norm: x̂ = x/√(mean over C of x² + Eps) for each voxel.
type Norm struct {
	Groups int
	Eps    float32
}

// Quantizer describes a codebook of Codes vectors of Dim floats.
type Quantizer struct{ Codes, Dim int }

// Adam is one optimiser step's constants. Weight decay is decoupled. Grad is scaled by GradScale first (clipping).
// Step counts from 1 and sets the bias correction. EMA = EMADecay*EMA + (1-EMADecay)*p.
type Adam struct {
	LR, Beta1, Beta2, Eps, WeightDecay float32
	GradScale                          float32
	EMADecay                           float32
	Step                               int
}

// Engine executes ops in the order in which they are called. It is not for concurrent use.
type Engine interface {
	Name() string // for people: "cpu (AVX-512, 2 threads)"

	// Reserve allocates the arena, once. Its content is undefined until written.
	Reserve(bytes int64) error
	// Sync waits until everything that was called has happened, and reports a device's failure.
	Sync() error
	Close() error

	// Write and Read move dense host data to and from the arena; Codes reads int32.
	Write(dst Ptr, src []float32)
	Read(dst []float32, src Ptr)
	Codes(dst []int32, src Ptr)
	// Fill sets n floats to a value.
	Fill(dst Ptr, n int, value float32)
	// Native is the type of activations that nothing asks to be float32.
	Native() Type
	// Bytes is the storage of a tensor.
	Bytes(d Dims, halo int, t Type) int64
	// WriteTensor stores dense [N, D, H, W, C] data; ReadTensor is its inverse.
	WriteTensor(dst Tensor, src []float32)
	ReadTensor(dst []float32, src Tensor)

	// ConvSizes says what memory a convolution wants.
	ConvSizes(c Conv) ConvSizes
	// PackConv packs weights for Conv (packed) and, where packedGrad ≥ 0, for ConvGradInput.
	PackConv(c Conv, w, packed, packedGrad Ptr)
	// Conv writes y = conv(x) + bias, and + add where add isn't nil. add has y's dims and may be y itself.
	// x has at least the halo of c.Halo(), filled as c.Pad says.
	Conv(c Conv, x Tensor, packed, bias Ptr, add *Tensor, y Tensor)
	// ConvGradInput writes dx, the gradient with respect to x without its halo: what padding copied is added to where
	// it came from. dy has at least the halo of c.Halo(), zero.
	ConvGradInput(c Conv, dy Tensor, packedGrad Ptr, dx Tensor)
	// ConvGradWeight adds to dw [Kz, Ky, Kx, Ci, Co] and db [Co]. x is as in Conv.
	ConvGradWeight(c Conv, x, dy Tensor, dw, db, workspace Ptr)

	// NormStats is the bytes of statistics that NormAct leaves for NormActGrad.
	NormStats(n Norm, d Dims) int64
	// NormAct writes y = silu(norm(x)) and the statistics. y isn't x.
	NormAct(n Norm, x Tensor, gamma, beta, stats Ptr, y Tensor)
	// NormActApply is NormAct with statistics that are already there: it recomputes y, bit for bit.
	NormActApply(n Norm, x Tensor, gamma, beta, stats Ptr, y Tensor)
	// NormActGrad writes dx (+ add where add isn't nil) and adds to dgamma, dbeta [C]. dx may be dy's or add's memory.
	// workspace is NormWork bytes.
	NormActGrad(n Norm, x Tensor, gamma, beta, stats Ptr, dy Tensor, add *Tensor, dx Tensor, dgamma, dbeta, workspace Ptr)
	NormWork(n Norm, d Dims) int64

	// Quantize finds for each voxel of z the nearest code by squared distance, the lowest on a tie: idx [voxels] int32,
	// q = codebook[idx]. It adds to counts [Codes] and sums [Codes, Dim], and writes to loss one float: the mean of (z-q)².
	// counts and sums may be -1 for none. workspace is QuantizeWork bytes.
	Quantize(k Quantizer, z Tensor, codebook, idx Ptr, q Tensor, counts, sums, loss, workspace Ptr)
	QuantizeWork(k Quantizer, d Dims) int64
	// QuantizeGrad writes dz = dq + scale*(z - codebook[idx]): the straight-through gradient and that of the commitment
	// loss. dz may be dq's memory; dq may be nil for none.
	QuantizeGrad(k Quantizer, z Tensor, codebook, idx Ptr, dq *Tensor, scale Ptr, dz Tensor)
	// Lookup writes q = codebook[idx].
	Lookup(k Quantizer, codebook, idx Ptr, q Tensor)

	// ReconLoss compares a reconstruction with its target. It writes to out four floats: mean |y-t|, mean (y-t)², mean
	// (clip(y)-clip(t))² with clip to [-1, 1], and the count of voxels whose y isn't finite; and, where dy isn't nil (scale may
	// be -1 where it is), the gradient scale*(l1*sign(y-t) + l2*2*(y-t))/len. dy may be y's memory. workspace is LossWork bytes.
	ReconLoss(y, t Tensor, l1, l2 float32, scale Ptr, dy *Tensor, out, workspace Ptr)
	LossWork(d Dims) int64

	// Add writes y = a + b; y may be either.
	Add(a, b, y Tensor)

	// SumSquares writes to out the sum of squares of n floats (NaN or Inf if one of them is).
	SumSquares(x Ptr, n int, out, workspace Ptr)
	SumSquaresWork(n int) int64
	// AdamStep updates n parameters, their moments and their running mean; ema may be -1 for none.
	AdamStep(a Adam, p, grad, m, v, ema Ptr, n int)
}
