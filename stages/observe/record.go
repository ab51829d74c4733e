package observe

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Step is what metrics.jsonl says of an optimiser step.
type Step struct {
	Step            int     // from 1
	Epoch           int     // from 0
	Recon           float64 // reconstruction loss: mean |x - x̂|, images in [-1, 1]
	Commitment      float64 // commitment loss, before its weight
	Loss            float64 // what was minimised
	Perplexity      float64 // of the codes of the batch
	PSNR            float64 // dB, of the batch
	GradNorm        float64 // global norm of the gradient, before clipping
	LR              float64
	Seconds         float64 // since the end of the step before
	VoxelsPerSecond float64
	BoundBy         string // see BoundBy; "" if not known
	RSS             int64  // resident bytes of the process
	Goroutines      int
	More            map[string]float64 // what else the run's quantiser and losses say, by names of moreNames
}

// moreNames are figures that a step has only with the quantiser or the losses which they are of.
var moreNames = [...]string{
	"train/ssim_loss",                   // 1 - multi-scale SSIM
	"train/perceptual_loss",             // LPIPS
	"train/gan_loss", "train/disc_loss", // adversarial, of the generator and of the discriminators
	"train/gan_feat_loss",                    // feature matching
	"train/gan_weight",                       // what the adversarial losses are multiplied by: weight, ramp and adaptive weight
	"train/logits_real", "train/logits_fake", // mean logits of scans and of reconstructions
	"train/disc_grad_norm", "train/r1",
	"train/codebook_usage",    // share of the codes that the batch used
	"train/codebook_restarts", // codes that moved to a latent, having been used too little
}

// Val is what metrics.jsonl says of a validation. Metrics are by their full names: those of valNames, and the same with
// val/ema_ for the EMA weights. Other names go to metrics.jsonl only.
type Val struct {
	Step    int // after this step
	Epoch   int
	Metrics map[string]float64
}

// valNames are metrics of a validation: of the weights that it measured, then of the validation itself.
var valNames = [...]string{
	"val/recon_loss", "val/psnr", "val/psnr_mean", "val/psnr_body", "val/ssim", "val/hfen", "val/hf_ratio", "val/mae_hu", "val/perplexity", "val/codebook_usage",
	"val/psnr_trilinear", "val/ssim_trilinear", "val/psnr_window_hu", "val/scans", "val/patches",
}

// weighed is how many of valNames are measured once for each set of weights.
const weighed = 10

// field is a name and its value: an int, int64, float64, string, or nil.
type field struct {
	name  string
	value any
}

func (s Step) fields() []field {
	list := []field{
		{"step", s.Step}, {"epoch", s.Epoch},
		{"train/recon_loss", s.Recon}, {"train/commitment_loss", s.Commitment}, {"train/loss", s.Loss},
		{"train/perplexity", s.Perplexity}, {"train/psnr", s.PSNR}, {"train/grad_norm", s.GradNorm},
		{"lr", s.LR}, {"seconds", s.Seconds}, {"voxels_per_second", s.VoxelsPerSecond}, {"bound_by", s.BoundBy},
		{"rss_bytes", s.RSS}, {"goroutines", s.Goroutines},
	}
	for _, name := range moreNames {
		if x, ok := s.More[name]; ok {
			list = append(list, field{name, x})
		}
	}
	return list
}

// fields has every name of valNames, the EMA's only where they were measured.
func (v Val) fields() []field {
	list := []field{{"step", v.Step}, {"epoch", v.Epoch}}
	rest := maps.Clone(v.Metrics)
	take := func(name string, always bool) {
		if x, ok := rest[name]; ok {
			list = append(list, field{name, x})
		} else if always {
			list = append(list, field{name, nil})
		}
		delete(rest, name)
	}
	for _, name := range valNames {
		take(name, true)
	}
	for _, name := range valNames[:weighed] {
		take(ema(name), false)
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		list = append(list, field{name, rest[name]})
	}
	return list
}

func ema(name string) string { return "val/ema_" + strings.TrimPrefix(name, "val/") }

// columns of metrics.csv.
func columns() []string {
	var names []string
	for _, f := range (Step{}).fields() {
		names = append(names, f.name)
	}
	names = append(names, valNames[:]...)
	for _, name := range valNames[:weighed] {
		names = append(names, ema(name))
	}
	return append(names, moreNames[:]...)
}

// object is fields as a JSON object. Numbers are those of metrics.csv; what JSON has no number for is null.
func object(fields []field) []byte {
	b := []byte{'{'}
	for i, f := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		name, _ := json.Marshal(f.name) // strings and finite numbers always encode
		b = append(append(b, name...), ':')
		text, quoted := cell(f.value)
		switch {
		case quoted:
			value, _ := json.Marshal(text)
			b = append(b, value...)
		case text == "":
			b = append(b, "null"...)
		default:
			b = append(b, text...)
		}
	}
	return append(b, '}')
}

// cell is a value as text, "" for none and for numbers that aren't finite; quoted says that it isn't a number. Floats
// have as many digits as it takes to tell float32 values apart.
func cell(value any) (text string, quoted bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case int:
		return strconv.Itoa(v), false
	case int64:
		return strconv.FormatInt(v, 10), false
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "", false
		}
		format := byte('g')
		if a := math.Abs(v); a >= 1e-5 && a < 1e15 {
			format = 'f'
		}
		bits := 32
		if math.Abs(v) > math.MaxFloat32 {
			bits = 64
		}
		return strconv.FormatFloat(v, format, -1, bits), false
	}
	return "", false
}
