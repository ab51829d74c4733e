package observe

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// ProgressOptions say how a Progress shows itself. The zero value is for a pipe.
type ProgressOptions struct {
	Terminal bool             // a live line, instead of JSON lines
	Quiet    bool             // neither; only what is written to it
	Interval time.Duration    // between JSON lines; 0 is 15 s
	Now      func() time.Time // nil is time.Now
	Width    func() int       // columns of the terminal; nil asks it
}

// Progress shows how far a run is: on a terminal one live line, otherwise a JSON line now and then and at validations.
// It is also the writer to log to, so that log lines and the live line don't run into each other. All of it may be used
// by several goroutines. It starts none of its own: Step and Tick are its clock.
type Progress struct {
	w io.Writer
	o ProgressOptions

	mu      sync.Mutex
	now     frame
	fresh   bool      // now has something that no JSON line had
	shown   time.Time // when the live line was drawn or a JSON line written; zero: not yet
	columns int       // of the live line on the terminal; 0: there is none
	first   time.Time // when the first step began
	before  int       // steps that were done before it
	last    time.Time // when the newest step ended
	closed  bool
}

// redraw is how often the live line is drawn at most.
const redraw = 100 * time.Millisecond

// smooth is how much of the shown loss and PSNR is history.
const smooth = 0.9

// NewProgress returns a Progress that writes to w. Close ends it.
func NewProgress(w io.Writer, o ProgressOptions) *Progress {
	if o.Interval == 0 {
		o.Interval = 15 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Width == nil {
		o.Width = func() int { return width(w) }
	}
	return &Progress{w: w, o: o}
}

// width asks a terminal; 80 if it doesn't say.
func width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return 80
}

// Step tells of an optimiser step that was taken; total is the last one that will be, or 0 if that isn't known.
func (p *Progress) Step(s Step, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.o.Now()
	if p.first.IsZero() || s.Step <= p.now.step.Step { // the first one, or it went back
		p.first, p.before = now.Add(-time.Duration(s.Seconds*float64(time.Second))), s.Step-1
		p.now.loss, p.now.psnr = s.Loss, s.PSNR
	}
	p.last = now
	p.now.step, p.now.total = s, total
	p.now.loss += (1 - smooth) * (s.Loss - p.now.loss)
	p.now.psnr += (1 - smooth) * (s.PSNR - p.now.psnr)
	p.fresh = true
	p.show(false)
}

// Status tells what the run does beside taking steps: "validate 12/64". "" goes back to steps.
func (p *Progress) Status(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text != p.now.status {
		p.now.status = text
		p.fresh = text != "" || p.fresh && p.now.step.Step > 0 // else there is nothing to go back to
		p.show(false)
	}
}

// Tick redraws, or writes a JSON line if one is due and there is something new to say.
func (p *Progress) Tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(false)
}

// Validation tells of a validation, at once.
func (p *Progress) Validation(v Val) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.o.Quiet || p.closed:
	case p.o.Terminal:
		_ = p.above([]byte(summary(v) + "\n"))
	default:
		_, _ = p.w.Write(p.event("validation", v.fields()))
	}
}

// Write writes log lines, whole ones, above the live line.
func (p *Progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.above(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close shows the last state for good.
func (p *Progress) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.now.status = ""
	p.show(true)
	p.closed = true
	if p.columns == 0 {
		return nil
	}
	p.columns = 0
	_, err := io.WriteString(p.w, "\n")
	return err
}

// show draws the live line or writes a JSON line where one is due, or now in any case.
func (p *Progress) show(force bool) {
	now := p.o.Now()
	wait := p.o.Interval
	if p.o.Terminal {
		wait = redraw
		p.fresh = p.fresh || p.columns > 0 // its clock goes on
	}
	if p.o.Quiet || p.closed || !p.fresh || !force && !p.shown.IsZero() && now.Sub(p.shown) < wait {
		return
	}
	p.now.left = p.left(now)
	p.shown, p.fresh = now, false
	if p.o.Terminal {
		_ = p.above(nil)
		return
	}
	_, _ = p.w.Write(p.event("progress", p.now.fields()))
}

// left estimates the time to the last step from the mean pace since the first one, whatever was done between steps
// included; < 0 if it isn't known.
func (p *Progress) left(now time.Time) time.Duration {
	done, todo := p.now.step.Step-p.before, p.now.total-p.now.step.Step
	if p.first.IsZero() || done <= 0 || p.now.total == 0 {
		return -1
	}
	left := time.Duration(float64(p.last.Sub(p.first)) / float64(done) * float64(max(0, todo)))
	return max(0, left-now.Sub(p.last))
}

// above writes b where the live line is and draws the line below it. The terminal may have become narrower since the
// line was drawn, and have wrapped it.
func (p *Progress) above(b []byte) error {
	if !p.o.Terminal || p.o.Quiet || p.closed {
		if len(b) == 0 {
			return nil
		}
		_, err := p.w.Write(b)
		return err
	}
	columns := max(1, p.o.Width())
	var out bytes.Buffer
	if p.columns > 0 {
		if up := (p.columns - 1) / columns; up > 0 {
			fmt.Fprintf(&out, "\x1b[%dA", up)
		}
		out.WriteString("\r\x1b[J")
	}
	out.Write(b)
	p.columns = 0
	if p.now.any() {
		line, n := p.now.line(columns - 1)
		out.WriteString(line)
		p.columns = n
	}
	_, err := p.w.Write(out.Bytes())
	return err
}

// event is a line like those of the log.
func (p *Progress) event(name string, fields []field) []byte {
	head := []field{{"level", "info"}, {"event", name}, {"time", p.o.Now().Format(time.RFC3339)}}
	return append(object(append(head, fields...)), '\n')
}
