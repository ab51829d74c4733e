package queue

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/bits"
	"sync"
)

// Ledger is which patches of each epoch are done. It is safe for concurrent use.
type Ledger struct {
	mu     sync.Mutex
	epochs map[int]*epoch
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
func NewLedger() *Ledger { return &Ledger{epochs: map[int]*epoch{}} }

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
	if t.of != of && t.of != 0 {
		return fmt.Errorf("scan %s has %d patches in epoch %d, but had %d: do all workers cut with the same options?", id.Scan, of, id.Epoch, t.of)
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
	if t.of != of && t.of != 0 {
		return fmt.Errorf("scan %s has %d patches in epoch %d, but had %d: do all workers cut with the same options?", id.Scan, of, id.Epoch, t.of)
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
	out := ledgerJSON{Version: ledgerVersion, Run: run, Epochs: map[int]epochJSON{}}
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
