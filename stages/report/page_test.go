package report

import (
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// hostile is a text that would run, were it not escaped.
const hostile = `</script><img src=x onerror="document.title='owned'">{{.}}"'<b>&`

// full is a page of which every part holds a hostile text.
func full(state State) *Page {
	line := Line{Name: hostile}
	for i := range 40 {
		x := float64(i)
		line.Points = append(line.Points, Point{x, 20 + math.Sin(x/5), 19, 22})
	}
	return &Page{
		Name: hostile, State: state, Outcome: hostile, Advice: hostile, Command: hostile,
		Began: time.Date(2026, 1, 2, 22, 0, 0, 0, time.UTC), Written: time.Date(2026, 1, 3, 6, 30, 0, 0, time.UTC), Every: time.Minute,
		Facts:  []Fact{{hostile, "31.42", hostile, hostile}, {"SSIM", "0.92", "", ""}},
		Graph:  []Stage{{Name: hostile, State: "working", Busy: 0.5, Starved: 0.25, Blocked: 0.25, Out: 12345}, {Name: "train", State: "waiting for input", In: 12, Element: hostile, Bytes: 1 << 29, Limit: 1 << 30}},
		Bound:  hostile,
		Charts: []Chart{{Title: hostile, Unit: hostile, X: hostile, Lines: []Line{line, {Name: "b", Dashed: true, Points: line.Points[:1]}}}, {Title: "nothing"}},
		Pictures: []Picture{{Caption: hostile, Source: "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
			Link: "javascript:document.title='owned'"}},
		Tables:     []Table{{Title: hostile, Note: hostile, Head: []string{hostile, "PSNR"}, Rows: [][]string{{hostile, "1"}, {strings.Repeat("long/", 60), "2"}}}},
		Incidents:  []Incident{{Level: "warn", What: hostile, Detail: strings.Repeat("word", 200)}},
		Quarantine: []Incident{{What: hostile, Detail: hostile}},
		Config:     hostile, Versions: []Pair{{hostile, hostile}}, Files: []Pair{{hostile, hostile}},
	}
}

func written(t *testing.T, p *Page) string {
	t.Helper()
	var b strings.Builder
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What a page shows is text, wherever it comes from, and the page asks for nothing from elsewhere.
func TestPageEscapes(t *testing.T) {
	for _, state := range []State{Running, Paused, Stalled, Done, Failed, Diverged, Interrupted} {
		text := written(t, full(state))
		if strings.Contains(text, "<img src=x") || strings.Contains(text, `href="javascript:`) || strings.Contains(text, "onerror=\"doc") {
			t.Errorf("%s: a text got out of its place", state)
		}
		if n := strings.Count(text, "<script"); n != 1 {
			t.Errorf("%s: %d scripts", state, n)
		}
		for _, url := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
			if !strings.HasPrefix(url[1], "data:") && !strings.HasPrefix(url[1], "#") {
				t.Errorf("%s: asks for %s", state, url[1])
			}
		}
		if refreshes := strings.Contains(text, `http-equiv="refresh"`); refreshes == state.Over() {
			t.Errorf("%s: refreshes itself: %v", state, refreshes)
		}
	}
}

func TestPageWithoutAnything(t *testing.T) {
	text := written(t, &Page{State: Running})
	for _, heading := range []string{"Curves", "Pictures", "Quarantine", "What happened", "The graph"} {
		if strings.Contains(text, heading) {
			t.Errorf("an empty part %s", heading)
		}
	}
}

func TestWritePage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.html")
	for _, state := range []State{Running, Done} {
		if err := WritePage(path, full(state)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != written(t, full(state)) {
			t.Errorf("%s: %d bytes, %v", state, len(b), err)
		}
	}
	if err := WritePage(filepath.Join(t.TempDir(), "none", "report.html"), full(Done)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Whatever is to be drawn, a chart is well-formed, and its numbers are finite and within it.
func TestChart(t *testing.T) {
	value := rapid.OneOf(rapid.Float64(), rapid.Float64Range(-3, 3), rapid.SampledFrom([]float64{0, math.NaN(), math.Inf(1), 1e-300, 1e300, 5}))
	rapid.Check(t, func(t *rapid.T) {
		c := Chart{Title: "<", X: "&", Log: rapid.Bool().Draw(t, "log"), Zero: rapid.Bool().Draw(t, "zero")}
		for range rapid.IntRange(0, 3).Draw(t, "lines") {
			l := Line{Name: "a", Steps: rapid.Bool().Draw(t, "steps"), Dashed: rapid.Bool().Draw(t, "dashed")}
			for i, y := range rapid.SliceOfN(value, 0, 6).Draw(t, "values") {
				if math.Abs(y) > 1e12 || y != 0 && math.Abs(y) < 1e-12 {
					y = math.NaN() // no metric is
				}
				l.Points = append(l.Points, Point{float64(i), y, y - 1, y + 1})
			}
			c.Lines = append(c.Lines, l)
		}
		svg := string(c.SVG())
		if c.Empty() != (svg == "") {
			t.Fatalf("empty %v: %s", c.Empty(), svg)
		}
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v: %s", err, svg)
			}
			element, ok := token.(xml.StartElement)
			if !ok {
				continue
			}
			for _, a := range element.Attr {
				if a.Name.Local != "d" {
					continue
				}
				for _, text := range regexp.MustCompile(`[-+0-9.]+|NaN|Inf`).FindAllString(a.Value, -1) {
					var x float64
					if _, err := fmt.Sscan(text, &x); err != nil || x < -0.1 || x > chartW+0.1 {
						t.Fatalf("%q in %s", text, a.Value)
					}
				}
			}
		}
	})
}

// Ticks lie on the axis, ascend, are few, and are round.
func TestTicks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.Float64Range(-1e4, 1e4).Draw(t, "low")
		a := axis{low: low, high: low + math.Pow(10, rapid.Float64Range(-3, 4).Draw(t, "span"))}
		if a.log = rapid.Bool().Draw(t, "log"); a.log {
			a.low = math.Pow(10, rapid.Float64Range(-6, 3).Draw(t, "from"))
			a.high = a.low * math.Pow(10, rapid.Float64Range(0.2, 9).Draw(t, "decades"))
		}
		at := a.ticks(4)
		if len(at) < 1 || len(at) > 9 || !slices.IsSorted(at) || at[0] < a.low || at[len(at)-1] > a.high+1e-9*math.Abs(a.high) {
			t.Fatalf("%+v: %v", a, at)
		}
		for i, x := range at {
			if i > 0 && figure(x) == figure(at[i-1]) && a.log {
				t.Fatalf("%+v: %v", a, at)
			}
		}
	})
	if got, want := (axis{low: 0, high: 10}).ticks(4), []float64{0, 2.5, 5, 7.5, 10}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := (axis{low: 0.03, high: 0.7, log: true}).ticks(4), []float64{0.05, 0.1, 0.2, 0.5}; len(got) != len(want) || math.Abs(got[0]-want[0]) > 1e-12 {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFigures(t *testing.T) {
	for x, want := range map[float64]string{
		0: "0", 1: "1", -1.5: "-1.5", 31.4159: "31.42", 0.92134: "0.9213", 0.001: "0.001", 3e-4: "3e-4", -2.5e-7: "-2.5e-7", 1234.5: "1234",
		9999: "9999", 10000: "10k", 123456: "123.5k", 2.5e6: "2.5M", 1e9: "1G", math.Inf(1): "–", 0.10001: "0.1",
	} {
		if got := figure(x); got != want {
			t.Errorf("%g: %q, want %q", x, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 3 << 29: "1.5 GiB", 1 << 40: "1 TiB", 517 << 20: "517 MiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567", -100: "-100"} {
		if got := Count(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", time.Hour: "1 h 0 min", 9*time.Hour + 12*time.Minute: "9 h 12 min",
		76 * time.Hour: "3 d 4 h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestSpread(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, most := rapid.IntRange(0, 50).Draw(t, "n"), rapid.IntRange(0, 9).Draw(t, "most")
		list := make([]int, n)
		for i := range list {
			list[i] = i
		}
		got := Spread(list, most)
		if len(got) != min(n, most) || !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Fatalf("%d of %d: %v", most, n, got)
		}
		if len(got) > 0 && got[len(got)-1] != n-1 || len(got) > 1 && got[0] != 0 {
			t.Fatalf("%d of %d: %v", most, n, got)
		}
	})
}

func TestThumbs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.png")
	draw := func(w, h int, c color.Color) {
		m := image.NewRGBA(image.Rect(0, 0, w, h))
		for i := range w * h {
			m.Set(i%w, i/w, c)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(png.Encode(f, m), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	thumbs := Thumbs{Width: 20}
	draw(100, 50, color.White)
	first, err := thumbs.Data(path)
	if err != nil || !strings.HasPrefix(string(first), "data:image/jpeg;base64,") {
		t.Fatalf("%.40s, %v", first, err)
	}
	if again, err := thumbs.Data(path); err != nil || again != first {
		t.Errorf("another the second time: %v", err)
	}
	draw(10, 50, color.Black)
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if changed, err := thumbs.Data(path); err != nil || changed == first {
		t.Errorf("the same for another picture: %v", err)
	}
	thumbs.Keep([]string{path})
	if len(thumbs.made) != 1 {
		t.Errorf("%d pictures kept, want 1", len(thumbs.made))
	}
	thumbs.Keep(nil)
	if len(thumbs.made) != 0 {
		t.Errorf("%d pictures kept, want none", len(thumbs.made))
	}
	if err := os.WriteFile(path, []byte("no picture"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".none"} {
		thumbs := Thumbs{Width: 20}
		if _, err := thumbs.Data(p); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", p, err)
		}
	}
}
