// Package weights takes the tensors of a VQ-GAN out of files that other programs wrote, and makes such state dicts of checkpoints. Names are
// medicaldiffusion's; docs/weights.md has them, and the layouts.
//
// Reading order: open.go (a file of weights, whatever its format), find.go (the model among its tensors), load.go (its arrays, as a
// checkpoint has them), axes.go (the order of a kernel's axes), export.go (the way back).
package weights
