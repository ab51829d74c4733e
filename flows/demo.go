package flows

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/stages/checkpoint"
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
	job.again = append([]string{"flowrun", "demo", dir}, overrides...)
	if err := job.Run(ctx, soft, ui); err != nil {
		return err
	}
	return job.show(ctx, soft, ui)
}

// show reconstructs the first held-out scan whole with the best weights, prints its measures and names its picture.
func (j *Job) show(ctx context.Context, soft <-chan struct{}, ui UI) error {
	found, err := j.findScans(ctx)
	if err != nil || len(found.held) == 0 {
		return err
	}
	best := filepath.Join(j.run.Dir, "checkpoints", checkpoint.BestName)
	if _, err := os.Stat(best); err != nil {
		return nil // no checkpoint was ranked, or links can't be made here
	}
	dir := filepath.Join(j.run.Dir, "reconstructed")
	back, err := Load("reconstruct.yaml", configs.Reconstruct, []string{
		fmt.Sprintf("read.scans=%q", found.held[0].Path), fmt.Sprintf("infer.checkpoint=%q", best),
		fmt.Sprintf("write.dir=%q", dir), "merge.mode=exact",
	})
	if err != nil {
		return err
	}
	back.again = nil
	if err := back.Run(ctx, soft, ui); err != nil {
		return err
	}
	shown, err := back.findScans(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(ui.Out, "\npicture: %s.png\n", filepath.Join(dir, pictureOf(shown.all[0], shown.all)))
	return err
}
