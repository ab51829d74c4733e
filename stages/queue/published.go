package queue

import (
	"sync"

	"github.com/flowrun/flowrun/stages/files"
)

// Published is what a publisher has published, a file of JSON lines: started again, it goes on behind that. It is safe for
// concurrent use.
type Published struct {
	mu    sync.Mutex
	lines *files.Lines[mark]
	done  map[mark]bool
}

type mark struct {
	Name   string `json:"scan"`
	Epoch  int    `json:"epoch"`
	Digest string `json:"digest,omitempty"`
}

// OpenPublished reads the file; one that isn't there is empty.
func OpenPublished(path string) (*Published, error) {
	lines, list, err := files.OpenLines(path, "a published scan", func(m mark) bool { return m.Name != "" })
	if err != nil {
		return nil, err
	}
	p := &Published{lines: lines, done: map[mark]bool{}}
	for _, m := range list {
		p.done[mark{Name: m.Name, Epoch: m.Epoch}] = true
	}
	return p, nil
}

// Has says whether a scan was published, in its epoch.
func (p *Published) Has(s *Scan) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done[mark{Name: s.Name, Epoch: s.Epoch}]
}

// Add brings one more to the disk. A line that a killed run left torn is written over.
func (p *Published) Add(s *Scan) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.lines.Add(mark{s.Name, s.Epoch, s.Digest}); err != nil {
		return err
	}
	p.done[mark{Name: s.Name, Epoch: s.Epoch}] = true
	return nil
}
