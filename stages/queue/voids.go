package queue

import (
	"sync"

	"github.com/flowrun/flowrun/stages/files"
)

// Void is a patch, or with Tile < 0 a scan, that an epoch ends without. One without a reason takes the scan's back: it was
// asked for again, and its patches come.
type Void struct {
	Epoch   int    `json:"epoch"`
	Scan    string `json:"scan"` // its name
	Tile    int    `json:"tile"`
	Tiles   int    `json:"tiles,omitempty"`
	Scans   int    `json:"scans,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Reason  string `json:"reason"`
}

// Voids is a trainer's list of them, a file of JSON lines. It is safe for concurrent use.
type Voids struct {
	mu    sync.Mutex
	lines *files.Lines[Void]
	list  []Void
}

// OpenVoids reads the file; one that isn't there is empty.
func OpenVoids(path string) (*Voids, error) {
	lines, list, err := files.OpenLines(path, "a void scan or patch", func(v Void) bool { return v.Scan != "" })
	if err != nil {
		return nil, err
	}
	return &Voids{lines: lines, list: list}, nil
}

// add appends one and brings it to the disk.
func (v *Voids) add(one Void) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.lines.Add(one); err != nil {
		return err
	}
	v.list = append(v.list, one)
	return nil
}

// attempt is the last one of a patch, or of its scan, that came to nothing; -1 if none did.
func (v *Voids) attempt(epoch int, scan string, tile int) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	last := -1
	for _, one := range v.list {
		if one.Reason != "" && one.Epoch == epoch && one.Scan == scan && (one.Tile < 0 || one.Tile == tile) {
			last = max(last, one.Attempt)
		}
	}
	return last
}

// revives says that an attempt at a scan takes back what came to nothing before, and that the list doesn't say so yet.
func (v *Voids) revives(epoch int, scan string, attempt int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	void := false
	for _, one := range v.list {
		if one.Epoch != epoch || one.Scan != scan {
			continue
		}
		if one.Reason == "" && one.Attempt >= attempt {
			return false
		}
		void = void || one.Reason != "" && one.Attempt < attempt
	}
	return void
}

// All is the list in the order in which it grew.
func (v *Voids) All() []Void {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]Void(nil), v.list...)
}
