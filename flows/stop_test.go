package flows

import (
	"context"
	"slices"
	"testing"

	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/volume"
)

// After a soft stop scans that are begun are finished. A batch may hold the last patches of one and the first of another.
func TestScansThatAreBegun(t *testing.T) {
	in := []string{"a", "a", "ab", "b", "b", "bc", "c"}
	for _, c := range []struct {
		stop int // before this batch
		want []string
	}{
		{0, nil}, {1, []string{"a", "a", "ab"}}, {2, []string{"a", "a", "ab"}}, {3, []string{"a", "a", "ab", "b", "b", "bc"}}, {7, in},
	} {
		w := &wiring{g: pipe.New(context.Background())}
		freed := 0
		var got []string
		batches := w.begun(func(yield func(*volume.Batch) bool) {
			for i, scans := range in {
				if i == c.stop {
					w.g.Stop()
				}
				b := &volume.Batch{Free: func() { freed++ }}
				for _, s := range scans {
					b.Tags = append(b.Tags, volume.Tag{Scan: string(s)})
				}
				if !yield(b) {
					return
				}
			}
		})
		for b := range batches {
			text := ""
			for _, t := range b.Tags {
				text += t.Scan
			}
			got = append(got, text)
			b.Release()
		}
		if !slices.Equal(got, c.want) || freed != len(in) {
			t.Errorf("stopped before batch %d: %v pass (want %v), %d of %d are released", c.stop, got, c.want, freed, len(in))
		}
	}
}
