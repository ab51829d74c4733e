package read

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/flowrun/flowrun/stages/files"
)

// Quarantine is the list of bad scans of a run, kept in a file of JSON lines. Its methods may be called from several
// goroutines at once.
type Quarantine struct {
	path string

	mu   sync.Mutex
	list []Bad
	has  map[string]bool
	size int64 // of the whole lines in the file; a torn line behind them is cut off by the next Add
}

// OpenQuarantine reads a quarantine file; one that isn't there is empty and is made by the first Add. A last line that
// a killed run left torn is passed over.
func OpenQuarantine(path string) (*Quarantine, error) {
	q := &Quarantine{path: path, has: map[string]bool{}}
	b, err := files.Read(path, files.Most)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return q, nil
		}
		b = rest
		q.size += int64(len(line)) + 1
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var bad Bad
		if err := json.Unmarshal(line, &bad); err != nil || bad.Scan == "" {
			return nil, fmt.Errorf("%s: line %d isn't a quarantined scan (mend or remove the line)", path, n)
		}
		q.put(bad)
	}
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
	line, err := json.Marshal(bad)
	if err != nil {
		return fmt.Errorf("%s: %w", q.path, err)
	}
	line = append(line, '\n')
	if err := files.Append(q.path, q.size, line); err != nil {
		return fmt.Errorf("%s: %w", q.path, files.Reason(err))
	}
	q.size += int64(len(line))
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
