package observe

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Divergence is a line of incidents.jsonl: training went wrong, and what was done about it. Names and meanings stay; new ones
// may come.
type Divergence struct {
	Number     int                `json:"number"`     // from 1, in the history that led to the newest checkpoint
	Time       time.Time          `json:"time"`       // when it was found
	Step       int                `json:"step"`       // at which it was found
	Since      int                `json:"since"`      // the first step that showed it
	Kind       string             `json:"kind"`       // nonfinite, spike, collapse or discriminator
	What       string             `json:"what"`       // in words
	Measured   map[string]float64 `json:"measured"`   // by the names of metrics.jsonl; "level" is the usual, "limit" what was passed
	Scans      []string           `json:"scans"`      // of the batch of that step; none where a validation found it
	Action     string             `json:"action"`     // lower_lr, delay_gan or stop
	Try        int                `json:"try"`        // in a row; at stop, how many were in vain
	Tries      int                `json:"tries"`      // that there may be
	BackTo     int                `json:"back_to"`    // the step gone back to; 0 is the beginning
	Checkpoint string             `json:"checkpoint"` // that of it, relative to the run's folder; "" for none
	LR         float64            `json:"lr"`         // the learning rate of the step where it was found
	TrainLR    float64            `json:"train_lr"`   // train.lr
	LRScale    float64            `json:"lr_scale"`   // the share of train.lr's schedule from now on
	GANStart   int                `json:"gan_start"`  // the step behind which discriminators learn from now on; 0: as the file says
}

const divergences = "incidents.jsonl"

// AddDivergence adds a line to a run's incidents.jsonl. Those of the same number and later ones go: a run that was killed before it
// could go on repeats them.
func AddDivergence(dir string, d Divergence) error {
	line, err := json.Marshal(d)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, divergences)
	return replace(path, path, func(w io.Writer, r io.Reader) error {
		err := lines(r, func(line []byte) error {
			var old Divergence
			if json.Unmarshal(line, &old) != nil || old.Number >= d.Number {
				return nil
			}
			_, err := w.Write(line)
			return err
		})
		if err == nil {
			_, err = w.Write(append(line, '\n'))
		}
		return err
	})
}

// Divergences are the lines of a run's incidents.jsonl.
func Divergences(dir string) (list []Divergence, err error) {
	f, err := os.Open(filepath.Join(dir, divergences))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	err = lines(f, func(line []byte) error {
		var d Divergence
		if json.Unmarshal(line, &d) == nil {
			list = append(list, d)
		}
		return nil
	})
	return list, err
}
