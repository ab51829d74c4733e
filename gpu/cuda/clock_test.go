//go:build cuda

package cuda

import (
	"testing"
	"time"

	"github.com/flowrun/flowrun/gpu"
)

// Marks tell how long the device was busy between them, not how long the host took to ask.
func TestClock(t *testing.T) {
	e := open(t)
	defer func() { _ = e.Close() }()
	if err := e.Reserve(64 << 20); err != nil {
		t.Fatal(err)
	}
	clock := e.(gpu.Clock)
	begun := time.Now()
	clock.Mark(0)
	for i := range 3 {
		e.Fill(0, 16<<20, float32(i))
		clock.Mark(i + 1)
	}
	var sum time.Duration
	for i := range 3 {
		took, err := clock.Elapsed(i, i+1)
		if err != nil || took <= 0 {
			t.Errorf("fill %d took %v, %v", i, took, err)
		}
		sum += took
	}
	all, err := clock.Elapsed(0, 3)
	if err != nil || (all-sum).Abs() > time.Millisecond || all > time.Since(begun) {
		t.Errorf("all took %v, by parts %v, here %v: %v", all, sum, time.Since(begun), err)
	}
	clock.Mark(1) // marks are moved
	if took, err := clock.Elapsed(3, 1); err != nil || took < 0 {
		t.Errorf("from the end to a mark behind it %v, %v", took, err)
	}
}
