package queue

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/volume"
)

// ListOptions are the keys of the stage scans.
type ListOptions struct {
	From   []string `key:"from" default:"[]" example:"data/**/*.nii.gz" doc:"The scans to publish, as read.scans names them."`
	Watch  string   `key:"watch" default:"" doc:"Folder whose scans are published as they appear; such a run has no end of its own."`
	Every  float64  `key:"every" default:"5" unit:"seconds" min:"0.05" doc:"How often watch looks. A file is taken when it hasn't changed between two looks."`
	Epochs int      `key:"epochs" default:"0" min:"0" doc:"How often each scan is published. 0 is train.epochs where the flow trains, else 1."`
}

// Check finds what no single key shows.
func (o *ListOptions) Check() error {
	switch {
	case len(o.From) == 0 && o.Watch == "":
		return errors.New("from: no folder, pattern or file is named (nor a folder to watch)")
	case len(o.From) > 0 && o.Watch != "":
		return errors.New("watch: goes without from: the folder's scans are published, those of now too")
	}
	for _, name := range append(slices.Clone(o.From), o.Watch) {
		if scheme, _, ok := strings.Cut(name, "://"); ok {
			return fmt.Errorf("from: %s: scans are files: workers fetch nothing from %s addresses; download it, and publish the file", redact(name), scheme)
		}
	}
	return nil
}

// PublishOptions are the keys of the stage publish.
type PublishOptions struct {
	Bytes bool `key:"bytes" default:"false" doc:"Of scans: send their bytes, for workers that can't read the files where they are. Wants queue.objects."`
}

// SubscribeOptions are the keys of the stage subscribe.
type SubscribeOptions struct {
	Roots    []string   `key:"roots" default:"[]" doc:"Of scans: folders that published files may be read from. A file is looked for at its path, then by its name below each."`
	Idle     float64    `key:"idle" default:"0" unit:"seconds" min:"0" doc:"Of scans: end when none has come for so long; 0 goes on waiting."`
	Patch    [3]int     `key:"patch" default:"[0, 0, 0]" unit:"voxels x, y, z" min:"0" max:"8192" example:"[256, 256, 128]" doc:"Of patches: the size that workers cut (their tile.patch). Zeros take this flow's own tile.patch."`
	WindowHU [2]float64 `key:"window_hu" default:"[-1000, 1000]" unit:"HU" doc:"Of patches: the window that workers read scans with (their read.window_hu)."`
	Spacing  [3]float64 `key:"spacing" default:"[0, 0, 0]" unit:"mm x, y, z" min:"0" doc:"Of patches: the voxel size that workers resample to (their read.spacing), for held-out scans and reconstruction."`
	Held     int        `key:"held" default:"0" unit:"patches" min:"0" doc:"Of patches: the most that may be out between two checkpoints. When a batch more wouldn't fit, a checkpoint is written. 0 is what two intervals of checkpoint.every take."`
	HeldOut  []string   `key:"held_out" default:"[]" doc:"Of patches: scans on this machine that are held out and measured, as read.scans names them; none leaves validation off."`
	BadShare float64    `key:"bad_share" default:"0.1" min:"0" max:"1" doc:"Of patches: share of an epoch's scans, rounded up to a whole one, that may be given up before the run stops."`
}

// Check finds what no single key shows.
func (o *SubscribeOptions) Check() error {
	if err := volume.CheckWindow(o.WindowHU); err != nil {
		return fmt.Errorf("window_hu: %w", err)
	}
	zeros := 0
	for a := range 3 {
		if o.Patch[a] == 0 {
			zeros++
		}
	}
	if zeros != 0 && zeros != 3 {
		return fmt.Errorf("patch: %v has a zero (give all three, or none)", o.Patch)
	}
	if o.Patch != [3]int{} {
		if err := CheckPatch(o.Patch); err != nil {
			return fmt.Errorf("patch: %w", err)
		}
	}
	return nil
}
