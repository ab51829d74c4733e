package metrics_test

import (
	"fmt"

	"github.com/flowrun/flowrun/stages/metrics"
)

func ExampleMeter() {
	m := metrics.Meter{Window: [2]float64{-1000, 1000}}
	m.BeginScan("scans/a.nii.gz")
	orig, recon := []float32{-1, 0, 0.5, 1}, []float32{-1, 0.1, 0.5, 1} // 100 HU off in one of four voxels
	if err := m.Add(orig, recon, [3]int{2, 2, 1}); err != nil {
		fmt.Println(err)
	}
	r := m.Result()
	fmt.Printf("PSNR %.1f dB over %g HU, MAE %.0f HU\n", r.PSNR, r.WindowHU, r.MAEHU)
	// Output: PSNR 32.0 dB over 2000 HU, MAE 25 HU
}
