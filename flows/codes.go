package flows

import (
	"context"
	"iter"
	"path/filepath"

	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/volume"
)

// Codes as a product: encode and save on the way in, load and decode on the way out.

func wireEncode(w *wiring, s *piece) {
	encode := w.encoder()
	w.codes = pipe.Expand(w.volumes, s.label, func(ctx context.Context, v *volume.Volume) iter.Seq2[*volume.Codes, error] {
		return func(yield func(*volume.Codes, error) bool) {
			defer v.Release()
			if w.stopped() {
				return
			}
			if c, err := encode(ctx, v); c != nil || err != nil {
				yield(c, err)
			}
		}
	})
}

func wireSave(w *wiring, s *piece) {
	o := *s.options.(*codes.Options)
	w.codes = pipe.Map(w.codes, s.label, 1, func(_ context.Context, c *volume.Codes) (*volume.Codes, error) {
		path, err := codes.Save(o.Dir, c, codes.SaveOptions{Name: w.back.names[c.Scan.ID], Latents: o.Latents})
		if err != nil {
			return nil, err
		}
		w.back.written.Add(1)
		w.log.Info().Str("event", "written").Str("scan", c.Scan.ID).Str("path", path).Int("codes", len(c.Index)).Msg("written")
		return c, nil
	})
}

// wireLoad reads files of codes in the order of their list. A file that can't be read is set aside, as a scan is.
func wireLoad(w *wiring, s *piece) {
	o := *s.options.(*codes.LoadOptions)
	w.codes = pipe.From(w.g, s.label, func(_ context.Context, emit func(*volume.Codes) error) error {
		for _, scan := range w.data.all {
			f, err := o.Load(scan)
			if err != nil {
				if err := w.setAside(read.Bad{Scan: scan.ID, Path: scan.Path, Reason: err.Error()}); err != nil {
					return err
				}
				continue
			}
			if !f.Sealed {
				w.log.Warn().Str("event", "unsealed").Str("scan", scan.ID).Msg("codes have no seal: another program wrote or edited them")
			}
			if err := emit(f.Codes); err != nil {
				return err
			}
		}
		return nil
	})
}

func wireDecode(w *wiring, s *piece) {
	w.outputs = pipe.Expand(w.codes, s.label, func(ctx context.Context, c *volume.Codes) iter.Seq2[*volume.Output, error] {
		return func(yield func(*volume.Output, error) bool) {
			v := (&volume.Volume{Scan: c.Scan, Dims: c.Dims, Window: c.Window, Geometry: c.Geometry}).Own(nil, nil)
			defer v.Release()
			if !w.stopped() {
				w.decode(ctx, c, v, yield)
			}
		}
	})
}

// findCodes lists the files of codes that a flow loads.
func (j *Job) findCodes(o codes.LoadOptions) (*data, error) {
	scans, bad, err := codes.List(o)
	if err != nil {
		return nil, dataErrorf("load.%w", err)
	}
	d := &data{all: scans, train: scans, seed: j.run.Seed, tiles: func(*volume.Scan) int { return 0 }}
	for _, b := range bad {
		d.bad = append(d.bad, read.Bad{Scan: b.Scan, Path: filepath.Clean(b.Path), Reason: b.Reason})
	}
	return d, nil
}
