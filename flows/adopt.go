package flows

import (
	"encoding/json"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/write"
)

// A flow with a trained model takes over what its file leaves open: the model's shape, the window, the spacing and the
// patch are the checkpoint's.

// modelKeys are the keys by which a stage names its model.
type modelKeys struct {
	infer.Options
	piece *piece
	patch [3]int // zero: the tile stage's, or the one that the model was trained with
}

// modelStage is the job's stage that runs a trained model.
func (j *Job) modelStage() (modelKeys, bool) {
	for _, p := range j.pieces {
		switch o := p.options.(type) {
		case *infer.Options:
			t, _ := option[tile.Options](j)
			return modelKeys{*o, p, t.Patch}, true
		case *infer.CodeOptions:
			return modelKeys{o.Options(), p, o.Patch}, true
		}
	}
	return modelKeys{}, false
}

// adopt takes over from the checkpoint what the file leaves open. It does nothing for a flow without a trained model.
func (j *Job) adopt(f *configs.File) error {
	m, ok := j.modelStage()
	if !ok {
		return nil
	}
	if t, ok := option[tile.Options](j); ok {
		if f.Given("tile.mode") && t.Mode != tile.ModeGrid {
			return j.piece(t).file.Errorf("mode", "%s: %s needs every voxel; set it to %s", t.Mode, m.piece.label, tile.ModeGrid)
		}
		t.Mode = tile.ModeGrid
	}
	if b, ok := option[batch.Options](j); ok && !f.Given("batch.size") {
		b.Size = 1
	}
	if !f.Given("run.dir") {
		if w, ok := option[write.Options](j); ok {
			j.run.Dir, j.dirKey = w.Dir, "write.dir"
		} else if s, ok := option[codes.Options](j); ok {
			j.run.Dir, j.dirKey = s.Dir, "save.dir"
		}
	}
	asked := j.model
	if m.Checkpoint == infer.IdentityName {
		if o, ok := m.piece.options.(*infer.CodeOptions); ok && o.Patch == [3]int{} {
			o.Patch = [3]int{128, 128, 64}
		}
		return nil
	}
	info, err := checkpoint.Peek(m.Checkpoint)
	if err != nil {
		return m.piece.file.Errorf("checkpoint", "%v", err)
	}
	if !info.Checkpoint {
		return m.piece.file.Errorf("checkpoint", "%s: not a checkpoint of flowrun", m.Checkpoint)
	}
	if j.model, err = vqgan.ParseConfig(info.Meta["model"]); err != nil {
		return m.piece.file.Errorf("checkpoint", "%s: %v", m.Checkpoint, err)
	}
	if f.Given("model") && !asked.Equal(&j.model) {
		return f.Errorf("model", "isn't that of %s; leave this block out", m.Checkpoint)
	}
	var trained stream
	if err := json.Unmarshal([]byte(info.Meta["stream"]), &trained); err != nil {
		return m.piece.file.Errorf("checkpoint", "%s: what it was trained on: %v", m.Checkpoint, err)
	}
	return j.adoptStream(f, trained)
}

// adoptStream takes over how the checkpoint's scans were read and cut.
func (j *Job) adoptStream(f *configs.File, trained stream) error {
	if r, ok := option[read.Options](j); ok {
		if f.Given("read.window_hu") && r.WindowHU != trained.Window {
			return j.piece(r).file.Errorf("window_hu", "%v, but the model was trained in %v: leave it out", r.WindowHU, trained.Window)
		}
		r.WindowHU = trained.Window
		if !f.Given("read.spacing") {
			r.Spacing = trained.Spacing
		}
	}
	if t, ok := option[tile.Options](j); ok && !f.Given("tile.patch") {
		t.Patch = trained.Tile.Patch
		if j.exact() {
			t.Patch = j.roomy(t.Patch)
		}
	}
	for _, p := range j.pieces {
		if o, ok := p.options.(*infer.CodeOptions); ok && o.Patch == [3]int{} {
			o.Patch = j.roomy(trained.Tile.Patch)
		}
	}
	return nil
}

// fitBack finds stages whose types meet, but which can't do their work on the way back.
func (j *Job) fitBack(p *piece) error {
	m, back := j.modelStage()
	_, loads := option[codes.LoadOptions](j)
	switch p.options.(type) {
	case *augment.Options:
		if back {
			return p.file.Errorf("", "%s is to give scans back as they are; leave augment out", m.piece.label)
		}
	case *metrics.Options:
		if loads {
			return p.file.Errorf("", "codes have no scan beside them to be measured against; leave measure out")
		}
	case *codes.Options:
		if loads {
			return p.file.Errorf("", "what load gives is saved already; put decode behind load")
		}
	case *infer.CodeOptions:
		if p.name == "decode" && !loads {
			return p.file.Errorf("", "takes the codes that load gives; to encode and decode in one flow put tile, batch and infer behind read, and merge with mode: exact")
		}
	}
	return nil
}

// roomy is a patch, enlarged where half of it or more would be halo in exact tiling.
func (j *Job) roomy(patch [3]int) [3]int {
	if j.model.Norm != "channel" {
		return patch
	}
	encoder, decoder := j.model.EncoderField(), j.model.DecoderField()
	for a, f := range j.model.Downsample {
		see := max(encoder[a][0], encoder[a][1], decoder[a][0]*f, decoder[a][1]*f)
		patch[a] = max(patch[a], (4*see+f-1)/f*f)
	}
	return patch
}

// piece is the one that holds these options.
func (j *Job) piece(options any) *piece {
	for _, p := range j.pieces {
		if p.options == options {
			return p
		}
	}
	return nil
}

// exact says that whole scans are encoded into one code grid and decoded without overlaps.
func (j *Job) exact() bool {
	o, _ := option[merge.Options](j)
	return o.Mode == merge.ModeExact
}
