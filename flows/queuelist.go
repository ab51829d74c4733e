package flows

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
)

// wireScans gives the scans to be published: those of each epoch in its order, or those that appear in a folder.
func wireScans(w *wiring, s *piece) {
	o, r := *s.options.(*queue.ListOptions), w.run
	w.references = pipe.From(w.g, s.label, func(ctx context.Context, emit func(*queue.Scan) error) error {
		if o.Watch != "" {
			return r.watchFolder(ctx, o, emit)
		}
		epochs := r.publishedEpochs()
		var lost []read.Bad
		for _, bad := range r.data.bad {
			if info, err := os.Stat(bad.Path); err == nil && info.Mode().IsRegular() {
				lost = append(lost, bad)
			}
		}
		n := len(r.data.train) + len(lost)
		told := epochs
		if told == unending {
			told = 0
		}
		for epoch := range epochs {
			scan := func(name, path string, index int) error {
				abs, err := filepath.Abs(path)
				if err != nil {
					return err
				}
				return emit(&queue.Scan{Name: name, Path: abs, Index: index, Epoch: epoch, Epochs: told, Scans: n})
			}
			for _, s := range r.data.order(epoch) {
				if err := scan(s.ID, s.Path, s.Index); err != nil {
					return err
				}
			}
			for i, bad := range lost { // a worker says what is wrong with them, in a dead letter
				if err := scan(bad.Scan, bad.Path, len(r.data.all)+i); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// unending is the number of epochs of a run that ends by the clock.
const unending = 1 << 20

// publishedEpochs is how often each scan is published.
func (r *run) publishedEpochs() int {
	o := r.job.ends().list.options.(*queue.ListOptions)
	tr, trains := option[train.Options](r.job)
	switch {
	case o.Epochs > 0:
		return o.Epochs
	case trains && r.job.run.Hours > 0:
		return unending
	case trains:
		return tr.Epochs
	}
	return 1
}

// watchFolder publishes a folder's scans as they appear. A file is taken once it is the same at two looks.
func (r *run) watchFolder(ctx context.Context, o queue.ListOptions, emit func(*queue.Scan) error) error {
	type look struct {
		size int64
		time time.Time
	}
	before, taken := map[string]look{}, map[string]bool{}
	for {
		opts := *r.job.reading()
		opts.Scans = []string{o.Watch}
		scans, bad, err := read.List(ctx, opts)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && len(scans)+len(bad) == 0 {
			if _, serr := os.Stat(o.Watch); serr != nil {
				return dataErrorf("scans.watch: %w", err)
			}
		}
		names := map[string]string{}
		for _, s := range scans {
			names[s.ID] = s.Path
		}
		for _, b := range bad {
			names[b.Scan] = b.Path
		}
		for name, path := range names {
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() || taken[name] {
				continue
			}
			now := look{info.Size(), info.ModTime()}
			if before[name] != now {
				before[name] = now
				continue
			}
			abs, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			for epoch := range max(1, o.Epochs) {
				if err := emit(&queue.Scan{Name: name, Path: abs, Index: len(taken), Epoch: epoch}); err != nil {
					return err
				}
			}
			taken[name] = true
		}
		t := time.NewTimer(time.Duration(o.Every * float64(time.Second)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}
