package observe

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// frame is what a Progress shows at a time.
type frame struct {
	step   Step
	total  int // 0: not known
	loss   float64
	psnr   float64
	left   time.Duration // < 0: not known
	status string
}

func (f *frame) any() bool { return f.step.Step > 0 || f.status != "" }

func (f *frame) fields() []field {
	fields := f.step.fields()
	if f.step.Step == 0 {
		fields = nil
	}
	if f.total > 0 {
		fields = append(fields, field{"total", f.total})
	}
	if f.total > 0 && f.left >= 0 {
		fields = append(fields, field{"eta_seconds", math.Round(f.left.Seconds())})
	}
	if f.status != "" {
		fields = append(fields, field{"status", f.status})
	}
	return fields
}

// line is the live line in at most so many columns, and how many it takes. Where there is less room than it wants, the
// bar gets shorter, and then parts go, the least needed first; the bar outlives those that a log tells as well.
func (f *frame) line(columns int) (string, int) {
	type part struct {
		text string
		need int // the higher, the longer it stays
	}
	var parts []part
	add := func(need int, format string, values ...any) {
		parts = append(parts, part{fmt.Sprintf(format, values...), need})
	}
	const bar = 1 // where the bar goes: after the first part
	const shortest, longest, needed = 8, 30, 3
	if s := f.step; s.Step > 0 {
		if f.total > 0 {
			add(9, "step %d/%d", s.Step, f.total)
			add(8, "%d%%", 100*min(s.Step, f.total)/f.total)
		} else {
			add(9, "step %d", s.Step)
		}
		add(3, "epoch %d", s.Epoch)
		add(6, "loss %.4g", f.loss)
		add(5, "psnr %.2f", f.psnr)
		if s.VoxelsPerSecond > 0 {
			add(2, "%s", rate(s.VoxelsPerSecond))
		}
		if f.total > 0 && f.left >= 0 {
			add(7, "%s left", clock(f.left))
		}
		if f.status == "" && s.BoundBy != "" {
			add(1, "bound by %s", s.BoundBy)
		}
	}
	if f.status != "" {
		add(4, "%s", clean(f.status))
	}
	room := func() int {
		n := columns + 2
		for _, p := range parts {
			n -= utf8.RuneCountInString(p.text) + 2
		}
		return n
	}
	for len(parts) > 1 {
		least := 0
		for i, p := range parts {
			if p.need < parts[least].need {
				least = i
			}
		}
		want := 0
		if f.total > 0 && f.step.Step > 0 && parts[least].need < needed {
			want = shortest + 2
		}
		if room() >= want {
			break
		}
		parts = append(parts[:least], parts[least+1:]...)
	}
	texts := make([]string, 0, len(parts)+1)
	for i, p := range parts {
		if n := min(longest, room()-2); i == bar && f.total > 0 && f.step.Step > 0 && n >= shortest {
			texts = append(texts, gauge(f.step.Step, f.total, n))
		}
		texts = append(texts, p.text)
	}
	runes := []rune(strings.Join(texts, "  "))
	runes = runes[:min(len(runes), max(0, columns))]
	return string(runes), len(runes)
}

// gauge is a bar of n columns.
func gauge(done, total, n int) string {
	full := min(done, total) * n / total
	return strings.Repeat("━", full) + strings.Repeat("─", n-full)
}

// rate is a number of voxels a second for people.
func rate(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.3g Gvoxel/s", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.3g Mvoxel/s", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.3g kvoxel/s", v/1e3)
	}
	return fmt.Sprintf("%.3g voxel/s", v)
}

// clock is a duration as h:mm:ss, without the hours where there are none.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s < 3600 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}

// clean keeps a text from moving the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// summary is a validation in a line for people: each metric of the raw weights, and that of the EMA's in brackets.
func summary(v Val) string {
	text := fmt.Sprintf("validation at step %d:", v.Step)
	add := func(format, name string, scale float64) {
		x, ok := v.Metrics["val/"+name]
		y, averaged := v.Metrics["val/ema_"+name]
		switch {
		case ok && averaged:
			text += fmt.Sprintf("  %s "+format+" (EMA "+format+")", label(name), scale*x, scale*y)
		case ok:
			text += fmt.Sprintf("  %s "+format, label(name), scale*x)
		}
	}
	add("%.2f", "psnr", 1)
	add("%.2f", "psnr_trilinear", 1)
	add("%.4f", "ssim", 1)
	add("%.1f", "mae_hu", 1)
	add("%.0f%%", "codebook_usage", 100)
	return text
}

func label(name string) string {
	switch name {
	case "psnr_trilinear":
		return "trilinear"
	case "mae_hu":
		return "error, HU"
	case "codebook_usage":
		return "codes used"
	}
	return name
}
