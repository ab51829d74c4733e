// Package cuda is the Engine on one NVIDIA GPU: bfloat16 activations and weights on the tensor cores, float32 sums, master
// weights, statistics, losses and codebook. One goroutine, locked to its thread, owns the CUDA context; the methods hand it
// work and return, except for those that read.
//
// The build tag cuda brings the engine in (it needs a C compiler; the Makefile sets the flags). Without it the package knows
// sizes only: Plan answers what an engine would reserve, on any machine. The driver's library is opened when a device is asked
// for, so one program serves machines with and without it.
//
// Reading order: sizes.go and tile.go (what a tensor takes), box.go (how a convolution falls into boxes), shim.c and driver.go (the
// driver), owner.go (the thread), engine.go, own.go (kernels for one kind of cards), conv.go, thin.go,
// norm.go, pointwise.go, optim.go (launches), record.go (graphs of them), kernels/ (CUDA C++, compiled to the PTX beside it).
//
// Bits. Sums have a fixed order that depends on shapes only, whatever the shape of a launch, and there are no float atomics: the
// same calls give the same bits on devices of one kind.
package cuda
