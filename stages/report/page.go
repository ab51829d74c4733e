package report

import (
	"bufio"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/files"
)

// State is how a run stands, or how it ended.
type State string

// The states of a run.
const (
	Running     State = "running"
	Paused      State = "paused"  // waits for room, on the disk or in memory
	Stalled     State = "stalled" // nothing has moved for long
	Done        State = "done"
	Failed      State = "failed"
	Diverged    State = "diverged"
	Interrupted State = "interrupted"
)

// Over says that the run has ended.
func (s State) Over() bool { return s != Running && s != Paused && s != Stalled }

// Page is all that report.html, or the live page, shows. Parts that are empty are left out. Its texts may come from
// outside (names of scans, errors): whatever they hold is shown as text.
type Page struct {
	Name    string // of the run: its folder
	State   State
	Outcome string // one sentence
	Advice  string // what to do about it; "" for nothing
	Command string // goes on with the run, or does it again

	Began, Written time.Time
	Every          time.Duration // the file is written anew about so often
	Live           bool          // served, not written: it refreshes itself

	Facts      []Fact
	Graph      []Stage
	Bound      string // what bounded the run, in a sentence
	Charts     []Chart
	Pictures   []Picture
	Tables     []Table // of scans: the worst first
	Incidents  []Incident
	Quarantine []Incident // scans that were set aside, and why
	Config     string     // YAML
	Versions   []Pair
	Files      []Pair // what lies where
}

// Fact is a figure worth a place of its own.
type Fact struct{ Label, Value, Unit, Note string }

// Pair is a name and what there is to say of it.
type Pair struct{ Name, Value string }

// Stage is a stage of the graph, and the edge that leads to it.
type Stage struct {
	Name  string
	State string // as package pipe names it
	Note  string
	In    int64
	Out   int64
	// Shares of the time, over all workers, [0, 1]: working, waiting for input, waiting for output.
	Busy, Starved, Blocked float64

	Element      string // what comes over the edge; "" for the first stage
	Bytes, Limit int64  // taken over the edge and not let go yet, and the budget that this counts against; 0: none
}

// Picture is a picture of a validation or of a scan.
type Picture struct {
	Caption string
	Source  template.URL // where the page finds it: a data URI, or a path on the live page's own server
	Link    string       // the file in the run's folder
}

// Table is values by scan.
type Table struct {
	Title, Note string
	Head        []string
	Rows        [][]string // as many cells as Head, a name first
}

// Incident is something that happened.
type Incident struct {
	Time   time.Time // zero: not known
	Level  string    // "info", "warn", "error"
	What   string
	Detail string
}

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// Policy is the Content-Security-Policy of a page: nothing from elsewhere, and no script but its own.
func Policy() string {
	sum := sha256.Sum256([]byte(pageJS))
	return "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; script-src 'sha256-" +
		base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Write writes the page as one HTML file that needs no other.
func (p *Page) Write(w io.Writer) error { return p.execute(w, "page") }

// WriteBody writes what changes while the page is looked at: the inside of its element main.
func (p *Page) WriteBody(w io.Writer) error { return p.execute(w, "body") }

func (p *Page) execute(w io.Writer, name string) error {
	t, err := template.New("").Funcs(template.FuncMap{
		"css":    func() template.CSS { return template.CSS(pageCSS) },
		"script": func() template.JS { return template.JS(pageJS) }, //nolint:gosec // it is the file beside this one
		"policy": Policy,
		"clock":  clock,
		"bytes":  Bytes,
		"count":  Count,
		"share":  func(x float64) string { return fmt.Sprintf("%.0f %%", 100*x) },
		"width":  func(x float64) string { return fmt.Sprintf("%.2f", 100*max(0, min(1, x))) },
		"sum":    func(a, b float64) float64 { return a + b },
		"filled": func(s Stage) float64 {
			if s.Limit <= 0 {
				return 0
			}
			return float64(s.Bytes) / float64(s.Limit)
		},
		"slug": func(s string) string { return strings.ReplaceAll(s, " ", "-") },
	}).Parse(pageHTML)
	if err != nil {
		return err
	}
	return t.ExecuteTemplate(w, name, p)
}

// clock is a time for people; "" for none.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format("2006-01-02 15:04:05")
}

// Bytes says bytes in binary units.
func Bytes(n int64) string {
	f := math.Abs(float64(n))
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if one := math.Pow(1024, float64(4-i)); f >= one {
			return trim(float64(n)/one, 3) + " " + unit
		}
	}
	return fmt.Sprintf("%d B", n)
}

// Count is a whole number with its thousands apart.
func Count(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// Duration is a time span for people: "45 s", "12 min", "9 h 12 min", "3 d 4 h".
func Duration(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	switch {
	case s < 120:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d min", (s+30)/60)
	case s < 48*3600:
		m := (s + 30) / 60
		return fmt.Sprintf("%d h %d min", m/60, m%60)
	}
	h := (s + 1800) / 3600
	return fmt.Sprintf("%d d %d h", h/24, h%24)
}

// WritePage writes a page into a file at path, whose folder exists. The file appears whole or not at all.
func WritePage(path string, p *Page) error {
	return files.Write(path, func(f io.Writer) error {
		b := bufio.NewWriterSize(f, 1<<16)
		if err := p.Write(b); err != nil {
			return err
		}
		return b.Flush()
	})
}
