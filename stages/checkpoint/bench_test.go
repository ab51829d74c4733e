package checkpoint

import (
	"testing"

	"github.com/flowrun/flowrun/stages/volume"
)

// A state of 64 MiB in 64 tensors, to a disk and back.
func benchState() *volume.Snapshot {
	s := snap(1, 30)
	for i := range 64 {
		s.Arrays = append(s.Arrays, volume.Array{Name: Name(i), Shape: []int{1 << 18}, Data: make([]float32, 1<<18)})
	}
	return s
}

func BenchmarkSave(b *testing.B) {
	state := benchState()
	s := open1(b, b.TempDir(), 1, "psnr")
	b.SetBytes(dataBytes(state.Arrays))
	b.ReportAllocs()
	for b.Loop() {
		save(b, s, state)
	}
}

func BenchmarkLoad(b *testing.B) {
	state := benchState()
	s := open1(b, b.TempDir(), 1, "psnr")
	save(b, s, state)
	b.SetBytes(dataBytes(state.Arrays))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(s.path(1)); err != nil {
			b.Fatal(err)
		}
	}
}
