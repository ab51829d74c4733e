package vqgan

import (
	"runtime"
	"testing"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// BenchmarkStep is one optimiser step of the shape of the peer's benchmark: hidden 16, two patches of 64×64×32, GroupNorm. Its profile
// is shown with -v.
func BenchmarkStep(b *testing.B) {
	for _, decoder := range []string{"lean", "full"} {
		b.Run(decoder, func(b *testing.B) {
			c := Config{Hidden: 16, Downsample: [3]int{4, 4, 4}, Embedding: 8, Codes: 512, Norm: "group", Groups: 8, Padding: "zero", Decoder: decoder}
			o := Options{Patch: [3]int{64, 64, 32}, Batch: 2, Loss: Loss{L1: 1, Commitment: 0.25},
				Codebook: CodebookOptions{Decay: 0.99}, Beta1: 0.5, Beta2: 0.9, Seed: 1}
			e := cpu.New(runtime.GOMAXPROCS(0))
			defer func() { _ = e.Close() }()
			s, err := Open(e, c, o)
			if err != nil {
				b.Fatal(err)
			}
			x := smooth(o.Patch, 2, 1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Step(x, x, 2, 3e-4); err != nil {
					b.Fatal(err)
				}
			}
			plan := s.Plan()
			b.ReportMetric(float64(len(x)*b.N)/b.Elapsed().Seconds(), "voxels/s")
			b.ReportMetric(float64(plan.Step)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GF/s")
			b.ReportMetric(float64(plan.Total)/(1<<20), "MiB")
			if !testing.Verbose() {
				return
			}
			timings, err := s.Profile(x, x, 2)
			if err != nil {
				b.Fatal(err)
			}
			for _, t := range nn.ByKind(timings) {
				b.Logf("%-18s %3d × %8.2f ms  %6.1f GF/s  %5.1f GB/s", t.Kind, t.Calls, t.Took.Seconds()*1e3,
					float64(t.FLOPs)/t.Took.Seconds()/1e9, float64(t.Bytes)/t.Took.Seconds()/1e9)
			}
		})
	}
}
