package phantom

import "testing"

func BenchmarkSlices(b *testing.B) {
	o := Options{Size: [3]int{128, 128, 128}, Noise: 12}
	b.ReportAllocs()
	for b.Loop() {
		o.Seed++
		for range Slices(o) {
		}
	}
	b.ReportMetric(float64(o.Size[0]*o.Size[1]*o.Size[2])*float64(b.N)/b.Elapsed().Seconds(), "voxels/s")
}

func BenchmarkPatient(b *testing.B) {
	for b.Loop() {
		newPatient(1).shapes()
	}
}
