package cpu

import (
	"testing"

	"github.com/flowrun/flowrun/gpu"
	"github.com/flowrun/flowrun/gpu/enginetest"
)

func TestEngine(t *testing.T) {
	for _, l := range levels() {
		t.Run(l.name, func(t *testing.T) {
			if !l.ok {
				t.Skip("this processor can't run it")
			}
			enginetest.Run(t, func() gpu.Engine { return open(l, 2) })
		})
	}
}

func BenchmarkEngine(b *testing.B) {
	for _, l := range levels() {
		if l.ok && l.name != "go" { // it takes minutes
			b.Run(l.name, func(b *testing.B) { enginetest.Bench(b, func() gpu.Engine { return open(l, 0) }) })
		}
	}
}
