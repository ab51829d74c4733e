package observe

import (
	"maps"
	"math"
	"slices"
	"sync"
)

// Point is the values of a metric over some steps that follow each other.
type Point struct {
	Step      float64 // their mean
	Mean      float64
	Low, High float64
}

// History is a run's metrics, by name, in little memory: of each at most resolution points, which stand for ever more
// steps as a run gets longer. Metrics keeps one. Its methods may be called from several goroutines at once.
type History struct {
	mu     sync.Mutex
	curves map[string]*curve
	bounds map[string]int // how many steps each stage bounded
}

// resolution is the most points that a curve has.
const resolution = 400

// curve is a metric in buckets of width steps.
type curve struct {
	width   int
	buckets []bucket
	sum     float64 // of all values
	newest  float64
}

type bucket struct {
	at              int // step / width
	n               int
	steps, sum      float64
	lowest, highest float64
}

func newHistory() *History {
	return &History{curves: map[string]*curve{}, bounds: map[string]int{}}
}

// become takes the place of what h was; nobody uses o any more.
func (h *History) become(o *History) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.curves, h.bounds = o.curves, o.bounds
}

// add takes the numbers of a step or a validation.
func (h *History) add(step int, fields []field) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range fields {
		var x float64
		switch v := f.value.(type) {
		case float64:
			x = v
		case int:
			x = float64(v)
		case int64:
			x = float64(v)
		case string:
			if f.name == "bound_by" && v != "" {
				h.bounds[boundStage(v)]++
			}
			continue
		default:
			continue
		}
		if f.name == "step" || math.IsNaN(x) || math.IsInf(x, 0) {
			continue
		}
		c := h.curves[f.name]
		if c == nil {
			c = &curve{width: 1}
			h.curves[f.name] = c
		}
		c.add(step, x)
	}
}

// boundStage is the stage that a Step.BoundBy names.
func boundStage(text string) string {
	for i, r := range text {
		if r == ' ' {
			return text[:i]
		}
	}
	return text
}

func (c *curve) add(step int, x float64) {
	c.sum += x
	c.newest = x
	b := bucket{step / c.width, 1, float64(step), x, x, x}
	if n := len(c.buckets); n > 0 && c.buckets[n-1].at >= b.at {
		c.buckets[n-1].join(b)
		return
	}
	c.buckets = append(c.buckets, b)
	for len(c.buckets) > resolution {
		c.width *= 2
		kept := c.buckets[:0]
		for _, b := range c.buckets {
			b.at /= 2
			if n := len(kept); n > 0 && kept[n-1].at == b.at {
				kept[n-1].join(b)
			} else {
				kept = append(kept, b)
			}
		}
		c.buckets = kept
	}
}

func (b *bucket) join(o bucket) {
	b.n += o.n
	b.steps += o.steps
	b.sum += o.sum
	b.lowest, b.highest = min(b.lowest, o.lowest), max(b.highest, o.highest)
}

// Curve is a metric over the steps; none if nothing has that name.
func (h *History) Curve(name string) []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.curves[name]
	if c == nil {
		return nil
	}
	points := make([]Point, len(c.buckets))
	for i, b := range c.buckets {
		points[i] = Point{b.steps / float64(b.n), b.sum / float64(b.n), b.lowest, b.highest}
	}
	return points
}

// Last is the newest value of a metric.
func (h *History) Last(name string) (float64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.curves[name]
	if c == nil {
		return 0, false
	}
	return c.newest, true
}

// Sum is the sum of all values of a metric.
func (h *History) Sum(name string) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.curves[name]; c != nil {
		return c.sum
	}
	return 0
}

// Names are those of all metrics, in order.
func (h *History) Names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.curves))
}

// Bounds is how many steps each stage bounded.
func (h *History) Bounds() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.bounds)
}
