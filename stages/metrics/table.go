package metrics

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// column is one of the table's: two lines of head, the most decimals, and what it shows.
type column struct {
	top, unit string
	width     int
	decimals  int
	of        func(r *Row) float64
}

func columns() []column {
	cs := []column{
		{"PSNR", "dB", 5, 2, func(r *Row) float64 { return r.PSNR }},
		{"body", "dB", 5, 2, func(r *Row) float64 { return r.PSNRBody }},
		{"SSIM", "", 6, 4, func(r *Row) float64 { return r.SSIM }},
		{"HFEN", "", 4, 2, func(r *Row) float64 { return r.HFEN }},
		{"HF", "ratio", 5, 2, func(r *Row) float64 { return r.HFRatio }},
		{"MAE", "HU", 5, 1, func(r *Row) float64 { return r.MAEHU }},
	}
	for i, name := range [Tissues]string{"air", "lung", "soft", "bone"} {
		cs = append(cs, column{name, "HU", 5, 1, func(r *Row) float64 { return r.TissueHU[i] }})
	}
	return append(cs,
		column{"seam", "", 4, 2, func(r *Row) float64 { return r.Seam }},
		column{"bits", "/vox", 5, 3, func(r *Row) float64 { return r.Code.Bits }},
		column{"used", "%", 4, 0, func(r *Row) float64 { return 100 * r.Code.Share }},
		column{"tri.", "dB", 5, 2, func(r *Row) float64 { return r.Trilinear.PSNR }},
		column{"tri.", "SSIM", 6, 4, func(r *Row) float64 { return r.Trilinear.SSIM }},
	)
}

const tableWidth = 112

// Table writes the results for people: at most 112 columns wide, a row for each scan, those of all scans below, and what
// the columns mean. A column without values is left out; names of scans that are too long lose their beginning.
func (s Summary) Table(w io.Writer) error {
	rows := append(append([]Row{}, s.Scans...), s.Pooled, s.Mean)
	var shown []column
	width := 0
	for _, c := range columns() {
		for i := range rows {
			if finite(c.of(&rows[i])) {
				shown = append(shown, c)
				width += c.width + 1
				break
			}
		}
	}
	name := len("pooled")
	for _, r := range rows {
		name = max(name, utf8.RuneCountInString(r.ID))
	}
	name = min(name, tableWidth-width)

	var b strings.Builder
	line := func(id string, cell func(c column) string) {
		text := pad(id, name)
		for _, c := range shown {
			text += fmt.Sprintf(" %*s", c.width, cell(c))
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	line("", func(c column) string { return c.top })
	line("scan", func(c column) string { return c.unit })
	rule := strings.Repeat("─", name+width) + "\n"
	b.WriteString(rule)
	for i := range rows {
		if i == len(s.Scans) && i > 0 {
			b.WriteString(rule)
		}
		line(rows[i].ID, func(c column) string {
			x := c.of(&rows[i])
			if !finite(x) {
				return "–"
			}
			cell := strconv.FormatFloat(x, 'f', c.decimals, 64)
			for d := c.decimals - 1; d >= 0 && len(cell) > c.width; d-- {
				cell = strconv.FormatFloat(x, 'f', d, 64)
			}
			return cell
		})
	}
	fmt.Fprintf(&b, "window %g to %g HU; body: original above %d HU\n", s.Window[0], s.Window[1], BodyHU)
	fmt.Fprintf(&b, "tissues by the original's HU: air < -950 ≤ lung ≤ %d < soft ≤ 200 < bone (and contrast)\n", BodyHU)
	for _, c := range shown {
		switch c.top + c.unit {
		case "HFEN":
			b.WriteString("HFEN: fine structure (Laplacian of a Gaussian, 1.5 voxels) of the error over the original's, norms\n")
		case "HFratio":
			b.WriteString("HF ratio: energy of the reconstruction's fine structure over the original's; below 1 is smooth\n")
		case "seam":
			b.WriteString("seam: mean absolute error next to tile borders over that of the rest\n")
		case "tri.dB":
			b.WriteString("tri.: the original made smaller by the model's factor and brought back, trilinear\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// pad brings a name to n runes.
func pad(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return "…" + string(r[len(r)-n+1:])
	}
	return s + strings.Repeat(" ", n-utf8.RuneCountInString(s))
}
