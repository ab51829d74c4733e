package write

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
)

// Types of Options.
const (
	Int16   = "int16"
	Float32 = "float32"
)

// Options of the stage write.
type Options struct {
	Dir    string `key:"dir" required:"true" example:"runs/recon" doc:"Folder that volumes are written to, in subfolders where the scans have them. Files of the same name are replaced. Where it lies below the folder of read.scans, what is in it is not taken for scans."`
	Dtype  string `key:"dtype" default:"int16" oneof:"int16 float32" doc:"Type of the voxels, which are in HU: int16 is rounded to whole HU, halves up."`
	Suffix string `key:"suffix" default:"_recon" doc:"What is added to the scan's name: a.nii.gz becomes a_recon.nii.gz."`
	Gz     bool   `key:"gz" default:"true" doc:"Whether files are compressed, .nii.gz rather than .nii."`
}

// Check finds what is wrong with names.
func (o *Options) Check() error {
	switch {
	case o.Dir == "":
		return errors.New("dir: no folder is named")
	case strings.ContainsAny(o.Suffix, `/\`+"\x00"):
		return fmt.Errorf("suffix: %q isn't part of a file's name", o.Suffix)
	}
	return nil
}

// CheckWindow says whether the HU of a window can be written.
func (o *Options) CheckWindow(window [2]float64) error {
	lo, hi := window[0], window[1]
	switch {
	case math.IsInf(lo, 0) || math.IsInf(hi, 0) || !(lo < hi):
		return fmt.Errorf("window [%v, %v] isn't one (want low < high)", lo, hi)
	case o.Dtype != Float32 && (math.Floor(lo+0.5) < math.MinInt16 || math.Floor(hi+0.5) > math.MaxInt16):
		return fmt.Errorf("dtype: int16 can't hold the HU of the window [%v, %v] (want float32)", lo, hi)
	}
	return nil
}

// Ready makes the folder and tries to write there, so that a run doesn't find out later.
func Ready(o Options) error {
	if err := o.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.Dir, 0o777); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	f, err := os.CreateTemp(o.Dir, ".write-*.tmp")
	if err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
