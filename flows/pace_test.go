package flows

import (
	"testing"

	"pgregory.net/rapid"
)

func TestPaceByHand(t *testing.T) {
	p := pace{plain: 1, adversarial: 3, start: 10}
	for _, c := range []struct {
		steps   int
		seconds float64
	}{{0, 0}, {4, 4}, {10, 10}, {11, 13}, {20, 40}} {
		if got := p.seconds(c.steps); got != c.seconds {
			t.Errorf("%d steps take %v s (want %v)", c.steps, got, c.seconds)
		}
		if got := p.steps(c.seconds); got != c.steps {
			t.Errorf("%d steps in %v s (want %d)", got, c.seconds, c.steps)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		p := pace{rapid.Float64Range(0.1, 5).Draw(t, "plain"), rapid.Float64Range(0.1, 5).Draw(t, "adversarial"), rapid.IntRange(0, 100).Draw(t, "start")}
		seconds := rapid.Float64Range(0, 500).Draw(t, "seconds")
		n := p.steps(seconds)
		if p.seconds(n) > seconds+1e-9 || p.seconds(n+1) < seconds-1e-9 {
			t.Fatalf("%+v: %d steps in %v s", p, n, seconds)
		}
	})
}

func TestLastStep(t *testing.T) {
	for _, c := range [][3]int{{0, 0, 0}, {0, 7, 7}, {9, 0, 9}, {9, 7, 7}, {7, 9, 7}} {
		if got := lastStep(c[0], c[1]); got != c[2] {
			t.Errorf("%d steps in all epochs, %d allowed: %d (want %d)", c[0], c[1], got, c[2])
		}
	}
}
