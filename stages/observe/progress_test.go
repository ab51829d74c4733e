package observe

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"
)

// clockwork is a clock that a test winds.
type clockwork struct{ t time.Time }

func newClock() *clockwork { return &clockwork{time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)} }

func (c *clockwork) now() time.Time { return c.t }

func (c *clockwork) wind(d time.Duration) { c.t = c.t.Add(d) }

// screen is a terminal: it does what the escape sequences of a live line say.
type screen struct {
	columns int
	rows    [][]rune
	row     int
	column  int
}

func (s *screen) Write(b []byte) (int, error) {
	if len(s.rows) == 0 {
		s.rows = [][]rune{nil}
	}
	text := []rune(string(b))
	for i := 0; i < len(text); i++ {
		switch r := text[i]; r {
		case '\r':
			s.column = 0
		case '\n':
			s.column = 0
			s.down()
		case 0x1b:
			end := i + 2
			for text[end] >= '0' && text[end] <= '9' {
				end++
			}
			switch text[end] {
			case 'A':
				var n int
				_, _ = fmt.Sscan(string(text[i+2:end]), &n)
				s.row = max(0, s.row-n)
			case 'J':
				s.rows[s.row] = s.rows[s.row][:min(s.column, len(s.rows[s.row]))]
				s.rows = s.rows[:s.row+1]
			default:
				return 0, fmt.Errorf("escape %q", string(text[i:end+1]))
			}
			i = end
		default:
			if r < ' ' {
				return 0, fmt.Errorf("control character %q", r)
			}
			if s.column == s.columns {
				s.column = 0
				s.down()
			}
			for len(s.rows[s.row]) <= s.column {
				s.rows[s.row] = append(s.rows[s.row], ' ')
			}
			s.rows[s.row][s.column] = r
			s.column++
		}
	}
	return len(b), nil
}

func (s *screen) down() {
	if s.row++; s.row == len(s.rows) {
		s.rows = append(s.rows, nil)
	}
}

// resize wraps rows again, as terminals do; every row here is a line.
func (s *screen) resize(columns int) {
	rows := s.rows
	*s = screen{columns: columns, rows: [][]rune{nil}}
	for i, r := range rows {
		if i > 0 {
			_, _ = s.Write([]byte("\n"))
		}
		_, _ = s.Write([]byte(string(r)))
	}
}

func (s *screen) text() string {
	var lines []string
	for _, r := range s.rows {
		lines = append(lines, strings.TrimRight(string(r), " "))
	}
	return strings.Join(lines, "\n")
}

var someStep = Step{Step: 300, Epoch: 2, Loss: 0.03125, PSNR: 31.5, VoxelsPerSecond: 12.34e6, BoundBy: "train 97%", Seconds: 2}

func terminal(columns int) (*Progress, *screen, *clockwork) {
	c, s := newClock(), &screen{columns: columns}
	p := NewProgress(s, ProgressOptions{Terminal: true, Now: c.now, Width: func() int { return s.columns }})
	return p, s, c
}

func TestLiveLine(t *testing.T) {
	p, s, _ := terminal(120)
	p.Step(someStep, 1000)
	want := "step 300/1000  ━━━━━────────────  30%  epoch 2  loss 0.03125  psnr 31.50  12.3 Mvoxel/s  23:20 left  bound by train 97%"
	if got := s.text(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p.Status("validate 3/64")
	p.Tick()
	check(t, p.Close())
	check(t, p.Close())
	if got := s.text(); got != want+"\n" {
		t.Errorf("after close: %q", got)
	}
	_, _ = p.Write([]byte("after\n"))
	if got := s.text(); got != want+"\nafter\n" {
		t.Errorf("after close: %q", got)
	}
}

// A terminal of the usual width has a bar, too.
func TestLiveLineOf80Columns(t *testing.T) {
	p, s, _ := terminal(80)
	p.Step(someStep, 1000)
	if got, want := s.text(), "step 300/1000  ━━━─────────  30%  epoch 2  loss 0.03125  psnr 31.50  23:20 left"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLiveLineFitsAnyWidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := rapid.IntRange(0, 200).Draw(t, "columns")
		f := frame{step: someStep, total: rapid.SampledFrom([]int{0, 1, 300, 1000000}).Draw(t, "total"), left: time.Hour,
			status: rapid.SampledFrom([]string{"", "validate\n3/64"}).Draw(t, "status")}
		text, n := f.line(columns)
		if n > columns || n != utf8.RuneCountInString(text) || strings.ContainsAny(text, "\n\r\x1b") {
			t.Fatalf("%d columns: %q takes %d", columns, text, n)
		}
		if columns > 20 && !strings.HasPrefix(text, "step 300") {
			t.Fatalf("%d columns: %q", columns, text)
		}
	})
}

func TestLogLinesStandAboveTheLiveLine(t *testing.T) {
	p, s, c := terminal(40)
	_, _ = p.Write([]byte("before\n"))
	p.Step(someStep, 0)
	_, _ = p.Write([]byte("a log line that is longer than the terminal is wide\n"))
	p.Validation(Val{Step: 300, Metrics: map[string]float64{"val/psnr": 30, "val/ema_psnr": 31, "val/codebook_usage": 0.5}})
	c.wind(time.Second)
	p.Step(someStep, 0)
	want := "before\na log line that is longer than the termi\nnal is wide\nvalidation at step 300:  psnr 30.00 (EMA\n 31.00)  codes used 50%\n" +
		"step 300  loss 0.03125  psnr 31.50"
	if got := s.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Whatever is written and however the terminal is resized, the log stays whole and one live line is below it.
func TestResizeLeavesNoGarbage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p, s, c := terminal(rapid.IntRange(5, 150).Draw(rt, "columns"))
		var logged []string
		for i := range rapid.IntRange(1, 12).Draw(rt, "events") {
			c.wind(time.Second)
			switch rapid.IntRange(0, 3).Draw(rt, "event") {
			case 0:
				line := fmt.Sprintf("log%d", i)
				logged = append(logged, line)
				_, _ = p.Write([]byte(line + "\n"))
			case 1:
				s.resize(rapid.IntRange(5, 150).Draw(rt, "columns"))
				p.Tick()
			case 2:
				p.Step(someStep, 1000)
			default:
				p.Tick()
			}
		}
		lines := strings.Split(s.text(), "\n")
		if last := lines[len(lines)-1]; last != "" && !strings.HasPrefix("step 300", last[:min(len(last), 4)]) {
			rt.Fatalf("live line %q", last)
		}
		if got := lines[:len(lines)-1]; strings.Join(got, "") != strings.Join(logged, "") {
			rt.Fatalf("log %q, want %q", got, logged)
		}
	})
}

func TestLiveLineIsDrawnTenTimesASecond(t *testing.T) {
	c := newClock()
	writes := &counter{}
	p := NewProgress(writes, ProgressOptions{Terminal: true, Now: c.now, Width: func() int { return 80 }})
	for range 1000 {
		c.wind(time.Millisecond)
		p.Step(someStep, 1000)
	}
	if writes.n != 10 {
		t.Errorf("drawn %d times in a second", writes.n)
	}
}

type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) { c.n++; return len(b), nil }

func TestPipeHasJSONLinesOnly(t *testing.T) {
	c := newClock()
	var b strings.Builder
	p := NewProgress(&b, ProgressOptions{Now: c.now})
	for s := 1; s <= 40; s++ {
		c.wind(time.Second)
		p.Step(Step{Step: s, Seconds: 1, Loss: 0.5}, 100)
		if s == 20 {
			p.Validation(Val{Step: s, Metrics: map[string]float64{"val/psnr": 31}})
		}
	}
	p.Status("validate 1/64")
	c.wind(20 * time.Second)
	p.Tick()
	c.wind(20 * time.Second)
	p.Tick() // nothing new
	check(t, p.Close())
	var got []string
	for line := range strings.Lines(b.String()) {
		var o struct {
			Event, Status, Time string
			Step, Total         int
			ETA                 *float64 `json:"eta_seconds"`
			PSNR                float64  `json:"val/psnr"`
		}
		check(t, json.Unmarshal([]byte(line), &o))
		text := fmt.Sprintf("%s %d", o.Event, o.Step)
		if o.ETA != nil {
			text += fmt.Sprintf("/%d %g", o.Total, *o.ETA)
		}
		if o.Status != "" {
			text += " " + o.Status
		}
		if o.PSNR != 0 {
			text += fmt.Sprintf(" %g", o.PSNR)
		}
		got = append(got, text+o.Time[10:])
	}
	want := "progress 1/100 99T07:08:10Z, progress 16/100 84T07:08:25Z, validation 20 31T07:08:29Z, progress 31/100 69T07:08:40Z, " +
		"progress 40/100 40 validate 1/64T07:09:09Z"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
}

// A run without steps has its status alone to tell of, and nothing once that is over.
func TestPipeWithoutSteps(t *testing.T) {
	c := newClock()
	var b strings.Builder
	p := NewProgress(&b, ProgressOptions{Now: c.now})
	for i := range 4 { // the last comes too soon after that before it
		p.Status(fmt.Sprintf("scan %d", i))
		c.wind(8 * time.Second)
	}
	p.Status("")
	check(t, p.Close())
	if n := strings.Count(b.String(), "\n"); n != 2 || !strings.Contains(b.String(), `"status":"scan 0"`) || !strings.Contains(b.String(), `"status":"scan 2"`) {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
}

func TestQuietIsQuiet(t *testing.T) {
	for _, tty := range []bool{false, true} {
		var b strings.Builder
		p := NewProgress(&b, ProgressOptions{Terminal: tty, Quiet: true})
		p.Step(someStep, 1000)
		p.Status("x")
		p.Validation(Val{Step: 1})
		_, _ = p.Write([]byte("warning\n"))
		check(t, p.Close())
		if b.String() != "warning\n" {
			t.Errorf("terminal %v: %q", tty, b.String())
		}
	}
}

func TestTimeLeftIsOfTheMeanPace(t *testing.T) {
	p, _, c := terminal(80)
	for s := 101; s <= 110; s++ { // resumed at 100; steps take 2 s and every fifth is followed by 10 s of validation
		c.wind(2 * time.Second)
		p.Step(Step{Step: s, Seconds: 2}, 150)
		if s%5 == 0 && s < 110 {
			c.wind(10 * time.Second)
		}
	}
	if got := p.left(c.now()); got != 120*time.Second { // 10 steps in 30 s, 40 to go
		t.Errorf("%v left", got)
	}
	c.wind(20 * time.Second)
	if got := p.left(c.now()); got != 100*time.Second {
		t.Errorf("%v left after 20 s", got)
	}
	c.wind(time.Hour)
	if got := p.left(c.now()); got != 0 {
		t.Errorf("%v left after an hour", got)
	}
}

// Loggers and the loop use it at once. For -race.
func TestProgressIsForManyGoroutines(t *testing.T) {
	var b strings.Builder
	p := NewProgress(&b, ProgressOptions{Terminal: true})
	log := zerolog.New(p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 50 {
				p.Step(Step{Step: i + 1}, 50)
				p.Status("s")
				log.Info().Msg("m")
				p.Tick()
			}
		})
	}
	wg.Wait()
	check(t, p.Close())
}
