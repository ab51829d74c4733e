package flows

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/flowrun/flowrun/stages/checkpoint"
)

// mostSamples is how many pictures of validations a run keeps, beside those of its checkpoints.
const mostSamples = 60

// surplus is which of some pictures, by their steps in order, can go so that at most so many are left: those that lie closest to
// their neighbours, so that the rest are spread evenly. The first, the last and those that are kept stay.
func surplus(steps []int, most int, kept func(step int) bool) (gone []int) {
	left := slices.Clone(steps)
	for len(left) > most {
		at, least := 0, 0
		for i := 1; i+1 < len(left); i++ {
			if gap := left[i+1] - left[i-1]; (at == 0 || gap < least) && !kept(left[i]) {
				at, least = i, gap
			}
		}
		if at == 0 {
			break
		}
		gone = append(gone, left[at])
		left = slices.Delete(left, at, at+1)
	}
	return gone
}

// thinSamples removes pictures of validations that there are too many of: a run of weeks draws thousands.
func (r *run) thinSamples() error {
	files, err := filepath.Glob(r.file("samples", "step-*.png"))
	if err != nil || len(files) <= mostSamples {
		return err
	}
	var steps []int
	for _, path := range files {
		if step, ok := sampleStep(path); ok {
			steps = append(steps, step)
		}
	}
	slices.Sort(steps)
	for _, step := range surplus(steps, mostSamples, func(step int) bool {
		_, err := os.Lstat(r.file("checkpoints", checkpoint.Name(step)))
		return err == nil
	}) {
		path := r.samplePath(step)
		if err := os.Remove(path); err != nil {
			return err
		}
		r.watch.removed(path)
	}
	return nil
}

func (r *run) samplePath(step int) string {
	return r.file("samples", fmt.Sprintf("step-%08d.png", step))
}

// sampleStep is the step that a picture is of.
func sampleStep(path string) (step int, ok bool) {
	_, err := fmt.Sscanf(filepath.Base(path), "step-%d.png", &step)
	return step, err == nil
}
