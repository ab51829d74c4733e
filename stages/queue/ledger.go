package queue

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"
)

// Ledger is which patches of each epoch are done. It is safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	epochs  map[int]*epoch
	sources map[string]Scan // by Key: how each scan is asked for again
}

// epoch is one epoch's part of a ledger.
type epoch struct {
	scans int // that it has; 0: nobody knows yet
	full  int // of which all is done
	whole bool
	by    map[string]*tiles // by Key; nil once the epoch is whole
}

// tiles are those of one scan in one epoch.
type tiles struct {
	of   int // 0: nobody knows yet
	n    int
	done []byte // bit t%8 of byte t/8
	void bool   // the scan gives none
}

func (t *tiles) has(tile int) bool { return tile/8 < len(t.done) && t.done[tile/8]>>(tile%8)&1 == 1 }

func (t *tiles) full() bool { return t.void || t.of > 0 && t.n == t.of }

// NewLedger returns an empty ledger.
func NewLedger() *Ledger { return &Ledger{epochs: map[int]*epoch{}, sources: map[string]Scan{}} }

// Has says that a patch is done.
func (l *Ledger) Has(id ID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epochs[id.Epoch]
	if e == nil {
		return false
	}
	t := e.by[id.Scan]
	return e.whole || t != nil && id.Tile >= 0 && t.has(id.Tile)
}

// Mark notes that a patch is done: one of so many tiles of its scan, which is one of so many scans of the epoch (0: nobody
// knows). It is an error where a scan has another number of tiles than before: then the workers don't agree how scans
// are cut.
func (l *Ledger) Mark(id ID, of, scans int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epoch(id.Epoch, scans)
	if e.whole {
		return nil
	}
	t := e.scan(id.Scan)
	if err := t.agrees(id, of); err != nil {
		return err
	}
	if id.Tile < 0 || id.Tile >= of {
		return fmt.Errorf("%s: tile %d of %d", id, id.Tile, of)
	}
	if t.of == 0 {
		t.of, t.done = of, make([]byte, (of+7)/8)
	}
	if t.has(id.Tile) {
		return nil
	}
	was := t.full()
	t.done[id.Tile/8] |= 1 << (id.Tile % 8)
	t.n++
	if t.full() && !was {
		e.full++
	}
	return nil
}

// agrees says whether a scan has as many patches as was known of it before.
func (t *tiles) agrees(id ID, of int) error {
	if t.of != of && t.of != 0 {
		return fmt.Errorf("scan %s has %d patches in epoch %d, but had %d: do all workers cut with the same options?", id.Scan, of, id.Epoch, t.of)
	}
	return nil
}

// unmark takes a mark back.
func (l *Ledger) unmark(id ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epochs[id.Epoch]
	if e == nil || e.whole {
		return
	}
	t := e.by[id.Scan]
	if t == nil || !t.has(id.Tile) {
		return
	}
	was := t.full()
	t.done[id.Tile/8] &^= 1 << (id.Tile % 8)
	t.n--
	if was && !t.full() {
		e.full--
	}
}

// expect notes how many tiles a scan has, and scans an epoch, before any is done.
func (l *Ledger) expect(id ID, of, scans int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epoch(id.Epoch, scans)
	if e.whole {
		return nil
	}
	t := e.scan(id.Scan)
	if err := t.agrees(id, of); err != nil {
		return err
	}
	if t.of == 0 {
		t.of, t.done = of, make([]byte, (of+7)/8)
	}
	return nil
}

// void notes that a scan gives no patches in an epoch, or that it does after all.
func (l *Ledger) void(epoch int, scan string, scans int, is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epoch(epoch, scans)
	if e.whole {
		return
	}
	t := e.scan(scan)
	was := t.full()
	t.void = is
	if now := t.full(); now && !was {
		e.full++
	} else if was && !now {
		e.full--
	}
}

// voids is how many scans of an epoch give no patches, of how many.
func (l *Ledger) voids(epoch int) (n, of int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epochs[epoch]
	if e == nil {
		return 0, 0
	}
	for _, t := range e.by {
		if t.void {
			n++
		}
	}
	return n, e.scans
}

// learn keeps how a scan is asked for again.
func (l *Ledger) learn(s Scan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := Key(s.Name)
	if old, ok := l.sources[key]; ok {
		s.Attempt = max(s.Attempt, old.Attempt)
	}
	l.sources[key] = s
}

// Merge adds to l what o has.
func (l *Ledger) Merge(o *Ledger) error {
	from := o.clone()
	for _, s := range from.sources {
		l.learn(s)
	}
	for n, e := range from.epochs {
		if e.whole {
			l.mu.Lock()
			to := l.epoch(n, e.scans)
			to.whole = true
			l.mu.Unlock()
			continue
		}
		for key, t := range e.by {
			for tile := range t.of {
				if !t.has(tile) {
					continue
				}
				if err := l.Mark(ID{Epoch: n, Scan: key, Tile: tile}, t.of, e.scans); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// lost are the scans of which l has a patch that now doesn't have, and the epochs: what a checkpoint that was discarded
// had been trained on, and was acknowledged.
func (l *Ledger) lost(now *Ledger) []Scan {
	was, is := l.clone(), now.clone()
	var list []Scan
	for n, e := range was.epochs {
		have := is.epochs[n]
		if have == nil {
			have = &epoch{by: map[string]*tiles{}}
		}
		if have.whole {
			continue
		}
		for key, s := range was.sources {
			t, kept := e.by[key], have.by[key]
			missing := e.whole && (kept == nil || !kept.full())
			for tile := 0; t != nil && tile < t.of && !missing; tile++ {
				missing = t.has(tile) && (kept == nil || !kept.has(tile))
			}
			if missing {
				s.Epoch = n
				list = append(list, s)
			}
		}
	}
	slices.SortFunc(list, func(a, b Scan) int {
		if a.Epoch != b.Epoch {
			return a.Epoch - b.Epoch
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

// Whole says that every patch of every scan of an epoch is done.
func (l *Ledger) Whole(epoch int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.epochs[epoch]
	return e != nil && e.complete()
}

// Len is how many patches of an epoch are done, and of how many that are known of.
func (l *Ledger) Len(epoch int) (done, known int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.epochs[epoch]; e != nil {
		for _, t := range e.by {
			done += t.n
			known += t.of
		}
	}
	return done, known
}

func (e *epoch) complete() bool { return e.whole || e.scans > 0 && e.full >= e.scans }

func (l *Ledger) epoch(n, scans int) *epoch {
	e := l.epochs[n]
	if e == nil {
		e = &epoch{by: map[string]*tiles{}}
		l.epochs[n] = e
	}
	e.scans = max(e.scans, scans)
	return e
}

func (e *epoch) scan(key string) *tiles {
	t := e.by[key]
	if t == nil {
		t = new(tiles)
		e.by[key] = t
	}
	return t
}

// The JSON of a ledger, in a checkpoint's metadata. An epoch of which all is done and nothing void is one number.
type (
	ledgerJSON struct {
		Version int               `json:"version"`
		Run     string            `json:"run"`
		Epochs  map[int]epochJSON `json:"epochs"`
		Sources map[string]Scan   `json:"sources,omitempty"`
	}
	epochJSON struct {
		Scans int                  `json:"scans,omitempty"`
		Whole bool                 `json:"whole,omitempty"`
		By    map[string]tilesJSON `json:"by,omitempty"`
	}
	tilesJSON struct {
		Tiles int    `json:"tiles"`
		Done  string `json:"done"` // base64
	}
)

const ledgerVersion = 1

// Encode is the ledger as JSON. What is void isn't in it: the file of voids holds that.
func (l *Ledger) Encode(run string) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := ledgerJSON{Version: ledgerVersion, Run: run, Epochs: map[int]epochJSON{}, Sources: l.sources}
	for n, e := range l.epochs {
		ej := epochJSON{Scans: e.scans}
		void := false
		for _, t := range e.by {
			void = void || t.void
		}
		if ej.Whole = e.complete() && !void; !ej.Whole {
			ej.By = map[string]tilesJSON{}
			for key, t := range e.by {
				if t.n > 0 {
					ej.By[key] = tilesJSON{t.of, base64.RawStdEncoding.EncodeToString(t.done)}
				}
			}
		}
		out.Epochs[n] = ej
	}
	return json.Marshal(out)
}

// ParseLedger reads what Encode wrote of the run.
func ParseLedger(text []byte, run string) (*Ledger, error) {
	var in ledgerJSON
	if err := json.Unmarshal(text, &in); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	switch {
	case in.Version != ledgerVersion:
		return nil, fmt.Errorf("ledger: version %d (this flowrun reads %d)", in.Version, ledgerVersion)
	case in.Run != run:
		return nil, fmt.Errorf("ledger: is of the run %q, not of %q", in.Run, run)
	}
	l := NewLedger()
	for key, s := range in.Sources {
		if err := s.check(); err != nil || Key(s.Name) != key {
			return nil, fmt.Errorf("ledger: scan %.20q: isn't one that can be asked for", key)
		}
		l.sources[key] = s
	}
	for n, ej := range in.Epochs {
		e := l.epoch(n, ej.Scans)
		if n < 0 || n > most || ej.Scans < 0 || ej.Scans > most {
			return nil, fmt.Errorf("ledger: epoch %d of %d scans", n, ej.Scans)
		}
		if e.whole = ej.Whole; e.whole {
			continue
		}
		for key, tj := range ej.By {
			done, err := base64.RawStdEncoding.DecodeString(tj.Done)
			if err != nil || !isKey(key) || tj.Tiles < 1 || tj.Tiles > most || len(done) != (tj.Tiles+7)/8 || spare(done, tj.Tiles) {
				return nil, fmt.Errorf("ledger: epoch %d: scan %.20q: isn't a set of %d tiles", n, key, tj.Tiles)
			}
			t := &tiles{of: tj.Tiles, done: done}
			for _, b := range done {
				t.n += bits.OnesCount8(b)
			}
			e.by[key] = t
			if t.full() {
				e.full++
			}
		}
	}
	return l, nil
}

// spare says that bits beyond the last tile are set.
func spare(done []byte, of int) bool {
	return of%8 != 0 && done[len(done)-1]>>(of%8) != 0
}

// clone is a copy.
func (l *Ledger) clone() *Ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := NewLedger()
	maps.Copy(c.sources, l.sources)
	for n, e := range l.epochs {
		to := &epoch{scans: e.scans, full: e.full, whole: e.whole, by: map[string]*tiles{}}
		for key, t := range e.by {
			copied := *t
			copied.done = append([]byte(nil), t.done...)
			to.by[key] = &copied
		}
		c.epochs[n] = to
	}
	return c
}
