package codes

import (
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// What LoadOptions.Use can name.
const (
	UseCodes     = "codes"
	UseQuantised = "quantised"
	UseLatents   = "latents"
)

// Options of the stage that saves codes.
type Options struct {
	Dir     string `key:"dir" required:"true" example:"runs/codes" doc:"Folder that codes are written to, one .codes.safetensors file a scan, in subfolders where the scans have them. Files of the same scan are replaced."`
	Latents bool   `key:"latents" default:"false" doc:"Whether files also hold the latents before and after quantisation, with mean and deviation of each channel. They take 4 bytes a channel each, where a code takes 2 bytes."`
}

// Check finds a folder without a name.
func (o *Options) Check() error {
	if o.Dir == "" {
		return errors.New("dir: no folder is named")
	}
	return nil
}

// LoadOptions of the stage that loads codes.
type LoadOptions struct {
	Codes []string `key:"codes" required:"true" example:"runs/codes" doc:"Where the codes are: a folder (searched with its subfolders for .codes.safetensors), a pattern with * and **, or a file. Several may be given as a list."`
	Use   string   `key:"use" default:"codes" oneof:"codes quantised latents" doc:"What is decoded: the codes; the quantised latents of the file, which may have been edited; or the latents before quantisation, as they are."`

	BadShare float64 `key:"bad_share" default:"0.1" min:"0" max:"1" doc:"Share of the files, rounded up to a whole one, that may be bad before the run stops."`
}

// Check finds places without a name.
func (o *LoadOptions) Check() error {
	if len(o.Codes) == 0 {
		return errors.New("codes: no folder, pattern or file is named")
	}
	return nil
}

// choose leaves c what o.Use names: what is to be decoded instead of the codes is in Quantised, which else is nil.
func (o *LoadOptions) choose(c *volume.Codes) error {
	switch o.Use {
	case UseQuantised:
		if c.Quantised == nil {
			return errors.New(`no tensor "quantised" to decode (want use: codes, or a file saved with latents)`)
		}
	case UseLatents:
		if c.Latents == nil {
			return errors.New(`no tensor "latents" to decode (want use: codes, or a file saved with latents)`)
		}
		c.Quantised = c.Latents
	case UseCodes, "":
		if c.Index == nil {
			return errors.New(`no tensor "codes" to decode (want use: quantised, or use: latents)`)
		}
		c.Quantised = nil
	default:
		return fmt.Errorf("use: %q (want codes, quantised or latents)", o.Use)
	}
	c.Latents = nil
	return nil
}
