// Package batch makes float batches of patches. This is where voxels are cut out of their volumes: cutting, flips,
// turns, intensity, noise, clipping to the window and scaling to [-1, 1] are one pass over each patch, from the volume's int16
// samples to the batch's float32. Cut does it for one patch; a Maker fills batches out of a fixed set of buffers; From
// numbers the stream and drops what an earlier run has trained.
package batch

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"sync/atomic"

	"github.com/flowrun/flowrun/stages/volume"
)

// Options says how many patches make a batch.
type Options struct {
	Size int `key:"size" default:"2" unit:"patches" min:"1" max:"65536" doc:"Patches in a batch: one optimiser step. Batches go across scans and epochs; only the last one of a run may be smaller."`
}

// Maker makes batches in buffers of its own. Set its fields before it is used.
type Maker struct {
	Workers int  // goroutines that cut voxels; 0 is one for each CPU. The bits don't depend on it.
	Noise   bool // patches may have noise: each buffer has room for a target beside the input
	Keep    bool // batches keep references to the volumes that their patches were cut from

	// Lost, if not nil, is told of each patch whose volume is lost (volume.Lost), and the patch is dropped; its error ends the
	// sequence. Without it a patch that can't be read does.
	Lost func(v *volume.Volume) error

	size    int
	patch   [3]int
	free    chan *buffer
	buffers int
	scratch *Scratch
}

// buffer is the memory of one batch, allocated when first used.
type buffer struct {
	input, target []float32
	lent          atomic.Bool
	release       func()
}

// New returns a maker of batches of patches of the given size (x, y, z). At most buffers batches exist at a time; the
// next one waits until one of them is released.
func New(o Options, patch [3]int, buffers int) *Maker {
	m := &Maker{size: max(1, o.Size), patch: patch, buffers: max(1, buffers)}
	m.free = make(chan *buffer, m.buffers)
	for range m.buffers {
		b := new(buffer)
		b.release = func() {
			if !b.lent.CompareAndSwap(true, false) {
				panic("batch: released twice")
			}
			m.free <- b
		}
		m.free <- b
	}
	return m
}

func (m *Maker) workers() int {
	if m.Workers > 0 {
		return m.Workers
	}
	return runtime.GOMAXPROCS(0)
}

func (m *Maker) voxels() int { return m.patch[0] * m.patch[1] * m.patch[2] }

// Size is the patches of a batch.
func (m *Maker) Size() int { return m.size }

// Bytes is the most host memory that the maker will ever hold.
func (m *Maker) Bytes() int64 {
	each := int64(m.size) * int64(m.voxels()) * 4
	if m.Noise {
		each *= 2
	}
	return int64(m.buffers)*each + scratchBytes(m.workers())
}

// Batches gives the patches of in as batches, in order, m.size at a time whatever their scan and epoch. The last batch
// is smaller where in ends before it is full. Input and Target are one slice unless a patch of the batch has noise.
//
// A patch is released once it is cut. Whoever receives a batch releases it. The sequence ends with an error if a patch can't be
// read (but see Lost), isn't of the maker's size or has another window than the rest of its batch, and when ctx ends.
func (m *Maker) Batches(ctx context.Context, in iter.Seq[*volume.Patch]) iter.Seq2[*volume.Batch, error] {
	return func(yield func(*volume.Batch, error) bool) {
		if m.scratch == nil {
			m.scratch = NewScratch(m.workers())
		}
		var cur *volume.Batch
		var buf *buffer
		defer func() {
			if cur != nil {
				cur.Release()
			}
		}()
		send := func() bool {
			n := len(cur.Tags) * m.voxels()
			cur.Input, cur.Target = buf.input[:n], cur.Target[:n]
			b := cur
			cur = nil
			return yield(b, nil)
		}
		for p := range in {
			if cur == nil {
				var err error
				if buf, err = m.take(ctx); err != nil {
					p.Release()
					yield(nil, err)
					return
				}
				cur = &volume.Batch{
					Tags: make([]volume.Tag, 0, m.size), Size: m.patch,
					Input: buf.input, Target: buf.input, Free: buf.release,
				}
			}
			if err := m.add(ctx, cur, buf, p); err != nil {
				yield(nil, err)
				return
			}
			if len(cur.Tags) == m.size && !send() {
				return
			}
		}
		if ctx.Err() != nil {
			yield(nil, context.Cause(ctx))
			return
		}
		if cur != nil && len(cur.Tags) > 0 {
			send()
		}
	}
}

// take waits for a free buffer.
func (m *Maker) take(ctx context.Context) (*buffer, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case b := <-m.free:
		b.lent.Store(true)
		if b.input == nil {
			b.input = make([]float32, m.size*m.voxels())
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// add cuts p into the next place of b, unless its volume is lost, and releases it.
func (m *Maker) add(ctx context.Context, b *volume.Batch, buf *buffer, p *volume.Patch) error {
	defer p.Release()
	if p.Size != m.patch {
		return fmt.Errorf("%s: want patches of size %v", p.Tag, m.patch)
	}
	if len(b.Tags) == 0 {
		b.Window = p.Volume.Window
	}
	if p.Volume.Window != b.Window {
		return fmt.Errorf("%s: window %v HU, but the batch began with %v", p.Tag, p.Volume.Window, b.Window)
	}
	n := m.voxels()
	at, end := len(b.Tags)*n, (len(b.Tags)+1)*n
	apart := &b.Target[0] != &buf.input[0] // a patch before this one had noise
	if noisy(p) && !apart {
		if !m.Noise {
			return fmt.Errorf("%s: has noise, but the maker has no room for a target", p.Tag)
		}
		if buf.target == nil {
			buf.target = make([]float32, len(buf.input))
		}
		copy(buf.target[:at], buf.input[:at])
		b.Target, apart = buf.target, true
	}
	var target []float32
	if apart {
		target = buf.target[at:end]
	}
	if err := m.scratch.cut(buf.input[at:end], target, p); err != nil {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case m.Lost != nil && p.Volume.Lost() != nil:
			return m.Lost(p.Volume)
		}
		return err
	}
	b.Tags = append(b.Tags, p.Tag)
	if m.Keep {
		b.Volumes = append(b.Volumes, p.Volume.Retain())
	}
	return nil
}

// noisy says whether an operation of p adds noise.
func noisy(p *volume.Patch) bool {
	for i := range p.Ops {
		if p.Ops[i].Noise > 0 {
			return true
		}
	}
	return false
}

// From numbers the patches of in, from 0 in each epoch (Tag.Seq), and gives those that lie at the cursor or after it. Those
// before it, which an earlier run has trained, are released, and so are those of a dry volume: of a scan that was lost
// when some of its patches had been trained. Errors are always nil.
func From(in iter.Seq[*volume.Patch], at volume.Cursor) iter.Seq2[*volume.Patch, error] {
	return func(yield func(*volume.Patch, error) bool) {
		epoch, seq := -1, 0
		for p := range in {
			if p.Epoch != epoch {
				epoch, seq = p.Epoch, 0
			}
			p.Seq = seq
			seq++
			if p.Epoch < at.Epoch || p.Epoch == at.Epoch && p.Seq < at.Seq || p.Volume.Dry() {
				p.Release()
			} else if !yield(p, nil) {
				return
			}
		}
	}
}
