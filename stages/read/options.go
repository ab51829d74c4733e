package read

import (
	"fmt"
	"io"
	"math"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// Options of the stage read.
type Options struct {
	Scans      []string   `key:"scans" default:"[]" example:"data/**/*.nii.gz" doc:"Where the scans are (required where the flow begins with read): a folder (searched with its subfolders for .nii, .nii.gz and .hdr), a pattern with * and **, a file, or a .txt file that lists paths a line each, relative to itself. Several may be given as a list."`
	WindowHU   [2]float64 `key:"window_hu" default:"[-1000, 1000]" unit:"HU" doc:"Intensities that become -1 and 1. What lies outside is clipped."`
	Cache      string     `key:"cache" default:"" doc:"Folder for an uncompressed copy of each scan, from which later epochs read patches without inflating or holding the volume. Empty means none."`
	Ahead      int        `key:"ahead" default:"2" min:"1" max:"64" unit:"scans" doc:"Scans that are read in parallel, as far as run.memory allows."`
	Frame      int        `key:"frame" default:"-1" min:"-1" doc:"Which image of a 4D scan is read, from 0. -1 refuses 4D scans."`
	ChannelDim int        `key:"channel_dim" default:"-1" min:"-1" max:"6" doc:"Axis, from 0, that is a channel of one element in scans of four axes: 0 for (1, H, W, D). -1 refuses scans that begin with such an axis."`
	MaxBytes   int64      `key:"max_bytes" default:"8GiB" unit:"bytes" min:"1" doc:"Largest inflated size of a scan; larger ones go to quarantine."`
	BadShare   float64    `key:"bad_share" default:"0.1" min:"0" max:"1" doc:"Share of the scans, rounded up to a whole one, that may be bad before the run stops."`
	Spacing    [3]float64 `key:"spacing" default:"[0, 0, 0]" unit:"mm x, y, z" min:"0" doc:"Voxel size that scans are resampled to, trilinearly, after clipping to the window. Zeros leave scans as they are."`

	through func(io.Reader) io.Reader // nifti.Limits' of the tests
}

// limits of the files.
func (o *Options) limits() nifti.Limits { return nifti.Limits{Bytes: o.MaxBytes, Through: o.through} }

// Check finds what is wrong between keys.
func (o *Options) Check() error {
	if err := volume.CheckWindow(o.WindowHU); err != nil {
		return fmt.Errorf("window_hu: %w", err)
	}
	zeros := 0
	for _, s := range o.Spacing {
		if !finite(s) || s < 0 {
			return fmt.Errorf("spacing: %v isn't a voxel size", s)
		}
		if s == 0 {
			zeros++
		}
	}
	if zeros != 0 && zeros != 3 {
		return fmt.Errorf("spacing: %v has a zero (give all three, or zeros to leave scans as they are)", o.Spacing)
	}
	return nil
}

// resample says that scans are resampled.
func (o *Options) resample() bool { return o.Spacing[0] > 0 }

// TooMany is an error when bad scans of total are more than bad_share allows.
func (o *Options) TooMany(bad, total int) error {
	if float64(bad) <= math.Ceil(o.BadShare*float64(total)-1e-9) {
		return nil
	}
	return fmt.Errorf("%d of %d scans are bad, more than bad_share %v allows", bad, total, o.BadShare)
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
