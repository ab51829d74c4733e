package flows

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/flowrun/flowrun/configs"
)

// The demo's scans: one patient more than it trains on.
const (
	demoScans = 8
	demoSize  = 128 // voxels along each axis
)

// Demo makes phantom scans in dir, unless they are there, and trains on them as configs.Demo says.
func Demo(ctx context.Context, soft <-chan struct{}, dir string, overrides []string, ui UI) error {
	scans := filepath.Join(dir, "scans")
	if have, _ := filepath.Glob(filepath.Join(scans, "phantom-*.nii")); len(have) < demoScans {
		o := PhantomOptions{Count: demoScans, Size: [3]int{demoSize, demoSize, demoSize}, Seed: 1, Noise: 12}
		if err := Phantoms(ctx, scans, o); err != nil {
			return err
		}
	}
	words := append([]string{fmt.Sprintf("run.dir=%q", dir), fmt.Sprintf("read.scans=%q", scans)}, overrides...)
	job, err := Load("demo.yaml", configs.Demo, words)
	if err != nil {
		return err
	}
	if err := job.Run(ctx, soft, ui); err != nil {
		return err
	}
	pictures, err := filepath.Glob(filepath.Join(job.run.Dir, "samples", "*.png"))
	if err != nil || len(pictures) == 0 {
		return err
	}
	_, err = fmt.Fprintln(ui.Out, pictures[len(pictures)-1])
	return err
}
