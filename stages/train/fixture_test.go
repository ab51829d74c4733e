package train_test

import (
	"context"
	"fmt"
	"iter"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// model is a Model whose state is the number of steps it took.
type model struct {
	steps int
	lrs   []float64
	says  func(step int) vqgan.Stats // nil: the step as L1
	step  func(step int) error       // before it is taken; may be nil
	state error
	calls []string // Feed, Launch and Finish, and how many steps had been taken then
}

func (m *model) did(what string, step int) { m.calls = append(m.calls, fmt.Sprint(what, " ", step)) }

func (m *model) Feed(input, _ []float32, n int) error {
	if len(input) != n*8 {
		return fmt.Errorf("%d voxels of %d patches", len(input), n)
	}
	m.did("feed", m.steps+1)
	return nil
}

func (m *model) Launch() { m.did("launch", m.steps+1) }

func (m *model) Finish(lr float64) (vqgan.Stats, error) {
	m.did("finish", m.steps+1)
	if m.step != nil {
		if err := m.step(m.steps + 1); err != nil {
			return vqgan.Stats{}, err
		}
	}
	m.steps++
	m.lrs = append(m.lrs, lr)
	if m.says != nil {
		return m.says(m.steps), nil
	}
	return vqgan.Stats{L1: float64(m.steps)}, nil
}

func (m *model) State() ([]vqgan.Array, error) {
	return []vqgan.Array{{Name: "steps", Shape: []int{1}, Data: []float32{float32(m.steps)}}}, m.state
}

// feed gives out batches of 2 patches of 2×2×2 voxels, 5 patches to an epoch and the last of all alone, and counts how
// often each was released.
type feed struct {
	n        int
	taken    int
	released []int
}

func newFeed(n int) *feed { return &feed{n: n, released: make([]int, n)} }

func tag(i int) volume.Tag {
	return volume.Tag{Scan: "a", Epoch: i / 5, Seq: i % 5, Tile: i % 5, Tiles: 5, Size: [3]int{2, 2, 2}}
}

// from gives the batches behind the first skip.
func (f *feed) from(skip int) iter.Seq[*volume.Batch] {
	return func(yield func(*volume.Batch) bool) {
		for f.taken = skip; f.taken < f.n; {
			i := f.taken
			f.taken++
			b := &volume.Batch{Size: [3]int{2, 2, 2}, Free: func() { f.released[i]++ }}
			b.Tags = append(b.Tags, tag(2*i))
			if i < f.n-1 {
				b.Tags = append(b.Tags, tag(2*i+1))
			}
			b.Input = make([]float32, 8*len(b.Tags))
			b.Target = b.Input
			if !yield(b) {
				return
			}
		}
	}
}

// balanced says whether each batch that was taken behind the first skip was released once, and no other.
func (f *feed) balanced(skip int) error {
	for i, n := range f.released {
		want := 0
		if i >= skip && i < f.taken {
			want = 1
		}
		if n != want {
			return fmt.Errorf("batch %d of %d taken: released %d times, want %d", i, f.taken, n, want)
		}
	}
	return nil
}

// shot is what the tests look at of a snapshot.
type shot struct {
	Step      int
	Reason    string
	Validated bool
}

// run drives the loop to its end, releasing each snapshot.
func run(ctx context.Context, l *train.Loop, in iter.Seq[*volume.Batch]) (shots []shot, err error) {
	for s, e := range l.Run(ctx, in) {
		if e != nil {
			return shots, e
		}
		shots = append(shots, shot{s.Step, s.Reason, s.Metrics != nil})
		s.Release()
	}
	return shots, nil
}

// measured is a Validate that always gives the same.
func measured(context.Context, int) (map[string]float64, error) {
	return map[string]float64{"val/psnr": 30}, nil
}
