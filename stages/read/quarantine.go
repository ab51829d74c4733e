package read

import (
	"slices"
	"sync"

	"github.com/flowrun/flowrun/stages/files"
)

// Quarantine is the list of bad scans of a run, kept in a file of JSON lines. Its methods may be called from several
// goroutines at once.
type Quarantine struct {
	mu    sync.Mutex
	lines *files.Lines[Bad]
	list  []Bad
	has   map[string]bool
}

// OpenQuarantine reads a quarantine file; one that isn't there is empty and is made by the first Add. A last line that
// a killed run left torn is passed over.
func OpenQuarantine(path string) (*Quarantine, error) {
	lines, list, err := files.OpenLines(path, "a quarantined scan", func(b Bad) bool { return b.Scan != "" })
	if err != nil {
		return nil, err
	}
	q := &Quarantine{lines: lines, has: map[string]bool{}}
	for _, bad := range list {
		q.put(bad)
	}
	return q, nil
}

func (q *Quarantine) put(bad Bad) {
	if !q.has[bad.Scan] {
		q.has[bad.Scan] = true
		q.list = append(q.list, bad)
	}
}

// Add appends a scan and brings it to the disk. A scan that is there already stays as it is.
func (q *Quarantine) Add(bad Bad) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.has[bad.Scan] {
		return nil
	}
	if err := q.lines.Add(bad); err != nil {
		return err
	}
	q.put(bad)
	return nil
}

// Has says that a scan, by its ID, is in the list.
func (q *Quarantine) Has(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.has[id]
}

// Get returns what is known of a scan, by its ID, that is in the list.
func (q *Quarantine) Get(id string) (Bad, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, bad := range q.list {
		if bad.Scan == id {
			return bad, true
		}
	}
	return Bad{}, false
}

// Len is the number of scans in the list.
func (q *Quarantine) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list)
}

// All is the scans in the order in which they were added.
func (q *Quarantine) All() []Bad {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.list)
}
