package flows

import (
	"slices"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/report"
)

// curve is a metric as a line of a chart.
type curve struct {
	metric, name string
	colour       int
	dashed       bool
	scale        float64 // 0 is 1
}

// trainCharts are the charts of a training, in the order in which they are looked at.
func trainCharts() []struct {
	report.Chart
	curves []curve
} {
	return []struct {
		report.Chart
		curves []curve
	}{
		{report.Chart{Title: "PSNR", Unit: "dB"}, []curve{
			{"val/psnr_trilinear", "trilinear baseline", 4, true, 0}, {"train/psnr", "training", 1, false, 0}, {"val/psnr", "validation", 0, false, 0}, {"val/ema_psnr", "validation, EMA", 2, false, 0}, {"val/whole_psnr", "whole scans", 3, false, 0}}},
		{report.Chart{Title: "SSIM"}, []curve{
			{"val/ssim_trilinear", "trilinear baseline", 4, true, 0}, {"val/ssim", "validation", 0, false, 0}, {"val/ema_ssim", "validation, EMA", 2, false, 0}, {"val/whole_ssim", "whole scans", 3, false, 0}}},
		{report.Chart{Title: "Fine structure", Unit: "of the scans', energy", Zero: true}, []curve{
			{"val/hf_ratio", "validation", 0, false, 0}, {"val/ema_hf_ratio", "validation, EMA", 2, false, 0}, {"val/whole_hf_ratio", "whole scans", 3, false, 0}}},
		{report.Chart{Title: "Mean absolute error", Unit: "HU"}, []curve{
			{"val/mae_hu", "validation", 0, false, 0}, {"val/ema_mae_hu", "validation, EMA", 2, false, 0}, {"val/whole_mae_hu", "whole scans", 3, false, 0}}},
		{report.Chart{Title: "Reconstruction loss", Unit: "mean |x − x̂|", Log: true}, []curve{
			{"train/recon_loss", "training", 1, false, 0}, {"val/recon_loss", "validation", 0, false, 0}, {"val/ema_recon_loss", "validation, EMA", 2, false, 0}}},
		{report.Chart{Title: "Loss", Unit: "all parts, with their weights"}, []curve{{"train/loss", "training", 1, false, 0}}},
		{report.Chart{Title: "SSIM loss", Unit: "1 − multi-scale SSIM", Log: true}, []curve{{"train/ssim_loss", "training", 1, false, 0}}},
		{report.Chart{Title: "Perceptual loss", Unit: "LPIPS", Log: true}, []curve{{"train/perceptual_loss", "training", 1, false, 0}}},
		{report.Chart{Title: "Adversarial losses"}, []curve{
			{"train/gan_loss", "generator", 0, false, 0}, {"train/disc_loss", "discriminators", 1, false, 0}}},
		{report.Chart{Title: "Weight of the adversarial losses", Zero: true}, []curve{{"train/gan_weight", "training", 0, false, 0}}},
		{report.Chart{Title: "Logits of the discriminators"}, []curve{
			{"train/logits_real", "scans", 0, false, 0}, {"train/logits_fake", "reconstructions", 1, false, 0}}},
		{report.Chart{Title: "Perplexity of the codes"}, []curve{
			{"train/perplexity", "training", 1, false, 0}, {"val/perplexity", "validation", 0, false, 0}}},
		{report.Chart{Title: "Codes used", Unit: "% of the codebook", Zero: true}, []curve{
			{"train/codebook_usage", "training, in a batch", 1, false, 100}, {"val/codebook_usage", "validation", 0, false, 100}, {"val/ema_codebook_usage", "validation, EMA", 2, false, 100}}},
		{report.Chart{Title: "Codes restarted", Unit: "a step", Zero: true}, []curve{{"train/codebook_restarts", "training", 1, false, 0}}},
		{report.Chart{Title: "Learning rate"}, []curve{{"lr", "learning rate", 0, false, 0}}},
		{report.Chart{Title: "Gradient norm", Unit: "before clipping", Log: true}, []curve{
			{"train/grad_norm", "training", 1, false, 0}, {"train/disc_grad_norm", "discriminators", 0, false, 0}}},
		{report.Chart{Title: "Throughput", Unit: "Mvoxel/s", Zero: true}, []curve{{"voxels_per_second", "training", 0, false, 1e-6}}},
	}
}

// charts are those that there is something to draw for.
func (w *watch) charts() []report.Chart {
	var list []report.Chart
	if h := w.history(); h != nil {
		var known []string
		for _, c := range trainCharts() {
			c.X = "step"
			for _, l := range c.curves {
				known = append(known, l.metric)
				c.Lines = append(c.Lines, l.line(h))
			}
			list = append(list, c.Chart)
		}
		list = slices.Insert(list, 6, otherLosses(h, known))
	}
	list = append(list, w.codeUsage(), w.memoryChart())
	return slices.DeleteFunc(list, func(c report.Chart) bool { return c.Empty() })
}

// line is the curve as far as it was recorded.
func (c curve) line(h *observe.History) report.Line {
	scale := c.scale
	if scale == 0 {
		scale = 1
	}
	l := report.Line{Name: c.name, Colour: c.colour, Dashed: c.dashed}
	for _, p := range h.Curve(c.metric) {
		l.Points = append(l.Points, report.Point{X: p.Step, Y: scale * p.Mean, Low: scale * p.Low, High: scale * p.High})
	}
	return l
}

// otherLosses are the parts of the loss that have no chart of their own.
func otherLosses(h *observe.History, known []string) report.Chart {
	c := report.Chart{Title: "Other losses", X: "step", Log: true}
	for _, name := range h.Names() {
		if !strings.HasPrefix(name, "train/") || !strings.HasSuffix(name, "loss") || slices.Contains(known, name) || len(c.Lines) == 5 {
			continue
		}
		text := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(name, "train/"), "_loss"), "_", " ")
		if name == "train/gan_feat_loss" {
			text = "feature matching"
		}
		c.Lines = append(c.Lines, curve{metric: name, name: text, colour: len(c.Lines)}.line(h))
	}
	return c
}

// codeUsage is how often the newest validation used each code, the most used first.
func (w *watch) codeUsage() report.Chart {
	c := report.Chart{Title: "Use of the codes", Unit: "% of all, by rank", X: "code, by rank", Log: true}
	counts := slices.Clone(w.usage)
	slices.SortFunc(counts, func(a, b int64) int { return int(min(1, max(-1, b-a))) })
	var all int64
	for _, n := range counts {
		all += n
	}
	if all == 0 {
		return c
	}
	l := report.Line{Name: "validation", Steps: true}
	step := max(1, len(counts)/400)
	for i := 0; i < len(counts); i += step {
		y := 100 * float64(counts[i]) / float64(all)
		l.Points = append(l.Points, report.Point{X: float64(i + 1), Y: y, Low: y, High: y})
	}
	c.Lines = []report.Line{l}
	return c
}

// memoryChart is the memory since the run was started.
func (w *watch) memoryChart() report.Chart {
	c := report.Chart{Title: "Memory", Unit: "GiB", X: "hours since it was started", Zero: true}
	unit := time.Hour
	if n := len(w.memory); n > 0 && w.memory[n-1].at.Sub(w.began) < 3*time.Hour {
		c.X, unit = "minutes since it was started", time.Minute
	}
	resident, scans := report.Line{Name: "process"}, report.Line{Name: "scans", Colour: 2}
	for _, s := range w.memory {
		x := float64(s.at.Sub(w.began)) / float64(unit)
		add := func(l *report.Line, n int64) {
			y := float64(n) / (1 << 30)
			l.Points = append(l.Points, report.Point{X: x, Y: y, Low: y, High: y})
		}
		if s.resident > 0 {
			add(&resident, s.resident)
		}
		add(&scans, s.scan)
	}
	c.Lines = []report.Line{resident, scans}
	return c
}
