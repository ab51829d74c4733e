package infer

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/flowrun/flowrun/stages/volume"
)

// Blend reconstructs batches: one output for each patch, in order. Patches are of the model's size, and batches hold the
// volumes that they were cut from (Batch.Volumes). used, if not nil, is told the codes of each patch before its output comes;
// it mustn't keep them, and its error ends the sequence.
//
// Outputs are written over the batch's Input, which is given back when the last of them is released, from whatever goroutine:
// no memory is taken but the batches' own. Every batch of in that was taken is released, in every ending. The sequence ends
// with an error if a batch doesn't suit or the model fails, and when ctx ends.
func Blend(ctx context.Context, in iter.Seq[*volume.Batch], m Reconstructor,
	used func(t volume.Tag, codes []int32) error) iter.Seq2[*volume.Output, error] {
	return func(yield func(*volume.Output, error) bool) {
		var codes []int32
		each := product(cells(m.Patch(), m.Downsample())) * m.Depth()
		for b := range in {
			if ctx.Err() != nil {
				b.Release()
				yield(nil, context.Cause(ctx))
				return
			}
			if used != nil {
				codes = resize(codes, len(b.Tags)*each)
			}
			if err := reconstruct(m, b, codes); err != nil {
				b.Release()
				yield(nil, err)
				return
			}
			if err := tell(used, b, codes); err != nil {
				b.Release()
				yield(nil, err)
				return
			}
			if !give(b, yield) {
				return
			}
		}
		if ctx.Err() != nil {
			yield(nil, context.Cause(ctx))
		}
	}
}

// tell gives used the codes of each patch.
func tell(used func(t volume.Tag, codes []int32) error, b *volume.Batch, codes []int32) error {
	if used == nil {
		return nil
	}
	n := len(codes) / len(b.Tags)
	for i, t := range b.Tags {
		if err := used(t, codes[i*n:(i+1)*n]); err != nil {
			return err
		}
	}
	return nil
}

// reconstruct runs a batch in place.
func reconstruct(m Reconstructor, b *volume.Batch, codes []int32) error {
	n := len(b.Tags)
	switch {
	case n == 0 || len(b.Volumes) != n:
		return fmt.Errorf("batch of %d patches with %d volumes (want one each)", n, len(b.Volumes))
	case b.Size != m.Patch():
		return fmt.Errorf("%s: the model was opened for patches of %v", b.Tags[0], m.Patch())
	}
	if err := m.Reconstruct(b.Input, b.Input, n, codes); err != nil {
		return fmt.Errorf("%s and %d more: %w", b.Tags[0], n-1, err)
	}
	return nil
}

// give yields the patches of a batch. References to volumes go over to the outputs. It is false once yield was.
func give(b *volume.Batch, yield func(*volume.Output, error) bool) bool {
	var left atomic.Int32
	left.Store(int32(len(b.Tags)))
	free := func() {
		if left.Add(-1) == 0 && b.Free != nil {
			b.Free()
		}
	}
	n := product(b.Size)
	for i, tag := range b.Tags {
		if !yield(&volume.Output{Tag: tag, Volume: b.Volumes[i], Voxels: b.Input[i*n : (i+1)*n : (i+1)*n], Free: free}, nil) {
			for _, v := range b.Volumes[i+1:] {
				v.Release()
				free()
			}
			return false
		}
	}
	return true
}

func cells(size, unit [3]int) [3]int {
	for a := range size {
		size[a] /= unit[a]
	}
	return size
}

// resize is s with n elements, whatever they are.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
