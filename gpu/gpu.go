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
// device that fails does so at Sync. Offsets are bytes in the arena, multiples of Align; single numbers may lie between.
package gpu

import "time"

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

// Norm describes a normalisation with affine parameters, followed by SiLU unless Plain: y = silu(γ·x̂ + β).
//
// Groups > 0 is GroupNorm: x̂ = (x-mean)/√(var+Eps) over D, H, W and the channels of a group, for each sample.
// Groups = 0 is the channel norm: x̂ = x/√(mean over C of x² + Eps) for each voxel.
// Batch (Groups 0, Plain) is BatchNorm with the batch's own statistics: x̂ = (x-mean)/√(var+Eps) over N, D, H, W for each channel;
// the statistics that NormAct leaves begin with mean [C] and the biased variance [C], float32.
type Norm struct {
	Groups int
	Batch  bool
	Plain  bool
	Eps    float32
}

// Judge says how a discriminator's logits are judged: as a real image's (OnReal) or a reconstruction's (OnFake), both of them the
// discriminator's loss; or as a reconstruction's by the generator (OfGenerator), which wants it taken for real. l is a logit:
//
//	          OnReal          OnFake          OfGenerator
//	Hinge     max(0, 1-l)     max(0, 1+l)     -l
//	Vanilla   softplus(-l)    softplus(l)     softplus(-l)
//	Squares   (l-1)²          l²              (l-1)²
//	Mean      l               l               l
//
// Mean is no loss: its gradient is that of the mean logit. Hinge's slope at its corner is 0. (Hinge: Lim and Ye, 2017; vanilla:
// Goodfellow et al., 2014; squares: Mao et al., 2017.)
type Judge struct {
	Loss Adversary
	Side Side
}

// Adversary is a kind of adversarial loss.
type Adversary uint8

// The kinds.
const (
	Hinge Adversary = iota
	Vanilla
	Squares
	Mean
)

// Side says whose loss it is, and on what.
type Side uint8

// The sides.
const (
	OnReal Side = iota
	OnFake
	OfGenerator
)

// Scalar describes a finite scalar quantiser (Mentzer et al., 2023): channel i takes one of Levels[i] whole numbers around 0.
//
//	b = tanh(z + shift)·half - offset      half = (L-1)·1.001/2, offset = 1/2 and shift = atanh(offset/half) where L is even, else 0
//	q = round(b) / (L div 2)      code = Σ (round(b) + L div 2)·Π of the levels before
//
// Halves are rounded to even. There are Π Levels codes, at most 2³¹-1; a level is at least 2. Where z is NaN so is q, and that channel adds 0
// to the code.
type Scalar struct{ Levels []int }

// Similarity describes multi-scale SSIM (Wang, Simoncelli and Bovik, 2003) of single-channel volumes with intensities in
// [-1, 1] (range 2), K1 0.01 and K2 0.03, of each sample by itself. Windows are Gaussians of σ 1.5 and 11 voxels along each
// axis (all of an axis that is shorter), taken where they lie inside. A scale is the 2× averages of the one before along axes
// longer than 1, an odd last voxel left out. The result is the product of the mean contrast-structure of each scale but the
// last, and of the last's mean SSIM, each to the power of its weight; means below 1e-6 count as 1e-6 and have no gradient.
type Similarity struct{ Weights []float64 }

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

	// Reserve allocates the arena, in place of one that was there; 0 bytes leave none. Its content is undefined until written.
	Reserve(bytes int64) error
	// Sync waits until everything that was called has happened, and reports a device's failure.
	Sync() error
	Close() error

	// Write and Read move dense host data to and from the arena; Codes reads int32.
	Write(dst Ptr, src []float32)
	Read(dst []float32, src Ptr)
	Codes(dst []int32, src Ptr)
	// Upload begins to copy src to the arena, for Store alone: it waits for every Store that was called, but for no other op, so the copy
	// may go on while they run. It returns when src may change. Store writes y from dense data [N, D, H, W, C] in the arena, behind all
	// Uploads; it fills the halo.
	Upload(dst Ptr, src []float32)
	Store(src Ptr, y Tensor)
	// Fill sets n floats to a value.
	Fill(dst Ptr, n int, value float32)
	// Copy copies n floats to where none of them lies, Gather rows of width floats: row i of dst is row at[i] (int32) of src. Both copy bits,
	// whatever they stand for. Where width is a multiple of 4, dst is one of 16 bytes.
	Copy(dst, src Ptr, n int)
	Gather(dst, src Ptr, width int, at Ptr, n int)
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
	// NormAct writes y = silu(norm(x)), or norm(x) where n is Plain, and the statistics. y isn't x.
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
	// Combine writes y = a + s·b, with s the float at scale; y may be either.
	Combine(a, b Tensor, scale Ptr, y Tensor)
	// Subtract writes y = a - b; y may be either.
	Subtract(a, b, y Tensor)

	// Activate writes y = max(x, 0) + slope·min(x, 0), slope from 0 (ReLU) to below 1; y may be x. (A NaN stays one.)
	Activate(slope float32, x, y Tensor)
	// ActivateGrad writes dx = dy where y > 0, slope·dy elsewhere, + add where that isn't nil. dx may be dy's or add's memory.
	ActivateGrad(slope float32, y, dy Tensor, add *Tensor, dx Tensor)
	// MaxPool writes y [N, D, H div 2, W div 2, C], the maxima of 2×2 voxels along H and W; an odd last row or column is left out, as in
	// PyTorch.
	MaxPool(x, y Tensor)
	// MaxPoolGrad gives each dy to the first of its maxima in order y, x, and 0 to the others, + add where that isn't nil. dx may be add's
	// memory.
	MaxPoolGrad(x, dy Tensor, add *Tensor, dx Tensor)
	// Slice cuts planes out of volumes: y is [N·k, 1, …, C] of x [N, …, C], k for each sample in its order; plane i lies at[i] (a float that
	// is whole and inside; planes may be equal) along the axis in sample i div k. axis 0 cuts along D and gives H×W, 1 along H and gives D×W,
	// 2 along W and gives D×H.
	Slice(axis int, x Tensor, at Ptr, y Tensor)
	// SliceGrad writes dx = add (0 where that is nil) + the dy of each plane that a voxel is in, added in their order. dx may be add's
	// memory.
	SliceGrad(axis int, dy Tensor, at Ptr, add *Tensor, dx Tensor)
	// Tint makes channels of one: y[c] = scale[c]·x + shift[c]. TintGrad writes dx = Σ over c of scale[c]·dy[c].
	Tint(x Tensor, scale, shift Ptr, y Tensor)
	TintGrad(dy Tensor, scale Ptr, dx Tensor)

	// JudgeLoss writes to out two floats, the mean loss and the mean logit; and, where dx isn't nil (scale may be -1 where it is), the
	// gradient scale/len · loss'(x). Where lecam isn't -1 it is two floats in the arena, λ and a: λ·max(0, x-a)² OnReal, λ·max(0, a-x)²
	// OnFake, is part of the loss of a logit (LeCam; Tseng et al., 2021); OfGenerator has none. workspace is LossWork bytes. dx may be x.
	JudgeLoss(j Judge, x Tensor, scale, lecam Ptr, dx *Tensor, out, workspace Ptr)
	// PerceptualLoss compares features as LPIPS does (Zhang et al., 2018): with â = a/(‖a‖+1e-10) over channels, mean over voxels
	// (of all samples) of Σ w[c]·(â-b̂)². It writes that to out and, where da isn't nil (scale may be -1 where it is), scale times
	// the gradient (+ add where that isn't nil). Where a is all zero it has no gradient (PyTorch's is NaN). da may be add's memory.
	// workspace is LossWork bytes.
	PerceptualLoss(a, b Tensor, w, scale Ptr, add, da *Tensor, out, workspace Ptr)
	// SimilarityLoss writes 1 - MS-SSIM to out, the mean over samples, and, where dy isn't nil (scale may be -1 where it is), scale times
	// the gradient with respect to y. workspace is SimilarityWork bytes, which covers the gradient.
	SimilarityLoss(s Similarity, y, t Tensor, scale Ptr, dy *Tensor, out, workspace Ptr)
	SimilarityWork(s Similarity, d Dims) int64

	// Unit writes y = x/max(‖x‖, 1e-12) over channels. UnitGrad writes dx = (dy - y·<dy, y>)/‖x‖, 0 where ‖x‖ ≤ 1e-12 (PyTorch's is
	// 1e12·dy); it may be dy's memory.
	Unit(x, y Tensor)
	UnitGrad(x, dy, dx Tensor)
	// Round quantises as Scalar says: idx [voxels] int32 and q, of z with a channel for each level. It adds to counts [codes] where that
	// isn't -1.
	Round(k Scalar, z Tensor, idx Ptr, q Tensor, counts Ptr)
	// RoundGrad writes dz = dq·db/dz/(L div 2), the straight-through gradient; dz may be dq's memory.
	RoundGrad(k Scalar, z, dq, dz Tensor)

	// Spectral divides weights w [rows, columns] by their largest singular value σ = vᵀ·w·u, after one power iteration (Miyato et
	// al., 2018): v ← w·u/‖w·u‖ [rows], then u ← wᵀ·v/‖wᵀ·v‖ [columns], both updated in the arena; u is a unit vector. It writes w̄
	// to out, and σ. Where ‖w·u‖ < 1e-12 (all zeros) there is nothing to divide by: w̄ = w, σ = 1, u and v stay (PyTorch's w̄ is
	// NaN). out isn't w. workspace is SpectralWork bytes.
	Spectral(w Ptr, rows, columns int, u, v, out, sigma, workspace Ptr)
	// SpectralGrad turns the gradient of w̄, in place, into that of w: (g - <g, w̄>·v·uᵀ)/σ.
	SpectralGrad(g, out Ptr, rows, columns int, u, v, sigma, workspace Ptr)
	SpectralWork(rows, columns int) int64
	// Balance writes to out two floats: λ = min(√a/(√b + 1e-4), limit), the adaptive weight of taming-transformers, from sums of squares a
	// and b; and λ times the float at factor.
	Balance(a, b Ptr, limit float32, factor, out Ptr)
	// Nudge writes y = x + h·g/‖g‖, the norm over the whole tensor (y = x where it is 0), and to out three floats, ‖g‖, f·‖g‖ and -f·‖g‖
	// with f the float at factor: what a finite difference along g wants. workspace is LossWork bytes.
	Nudge(x, g Tensor, h float32, factor Ptr, y Tensor, out, workspace Ptr)

	// SumSquares writes to out the sum of squares of n floats (NaN or Inf if one of them is).
	SumSquares(x Ptr, n int, out, workspace Ptr)
	SumSquaresWork(n int) int64
	// AdamStep updates n parameters, their moments and their running mean; ema may be -1 for none.
	AdamStep(a Adam, p, grad, m, v, ema Ptr, n int)
}

// Recorder is an Engine that can make calls again for less, as one CUDA graph.
type Recorder interface {
	// Replay makes the calls of f, which are ops alone. Those that it made under this key before, to the last operand, may be
	// made from a recording.
	Replay(key any, f func())
}

// Clock is an Engine whose device has a clock of its own, which sees neither the calls' way there nor a wait for an answer.
type Clock interface {
	// Mark notes as mark i when all that was called will have happened.
	Mark(i int)
	// Elapsed is the time from mark i to mark j, which it waits for.
	Elapsed(i, j int) (time.Duration, error)
}
