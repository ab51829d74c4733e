package volume

import (
	"errors"
	"testing"
)

// torn fails from slice 1 on.
type torn struct {
	Memory
	closed int
}

var errTorn = errors.New("torn")

func (t *torn) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	if z > 0 {
		return nil, errTorn
	}
	return t.Memory.Rows(z, y0, y1, buf)
}

func (t *torn) Close() error { t.closed++; return nil }

// After its first error a volume is lost: its memory is given back at once, and once.
func TestLost(t *testing.T) {
	s := &torn{Memory: Memory{Data: make([]int16, 8), Dims: [3]int{2, 2, 2}}}
	freed := 0
	v := (&Volume{Scan: &Scan{ID: "a"}, Dims: s.Dims}).Own(s, func() { freed++ })
	v.Retain()
	if _, err := v.Rows(0, 0, 2, nil); err != nil || v.Lost() != nil || v.Bytes() != 16 {
		t.Fatal(err, v.Lost(), v.Bytes())
	}
	for _, z := range []int{1, 0} {
		if _, err := v.Rows(z, 0, 2, nil); !errors.Is(err, errTorn) || !errors.Is(v.Lost(), errTorn) || s.closed != 1 || freed != 1 {
			t.Errorf("slice %d: %v, lost for %v, closed %d times, freed %d times", z, err, v.Lost(), s.closed, freed)
		}
	}
	v.Release()
	v.Release()
	if s.closed != 1 || freed != 1 || !errors.Is(v.Lost(), errTorn) {
		t.Errorf("closed %d times, freed %d times, lost for %v", s.closed, freed, v.Lost())
	}
}
