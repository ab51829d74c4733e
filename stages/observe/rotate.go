package observe

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync"
)

// logName is the log's name in a run's folder.
const logName = "log.jsonl"

// older is how many files a log is kept in beside the one that is written to.
const older = 3

// backlog is the most bytes of log lines that wait for room on the disk.
const backlog = 1 << 20

// logFile is a log that never fails and doesn't grow for ever: at limit bytes it is renamed to path.1, what was that to
// path.2, and so on. Lines that a full disk doesn't take wait for the next one that it does; of more than backlog bytes
// the oldest are lost. It keeps the first error of lines that were lost.
type logFile struct {
	path  string
	limit int64

	mu      sync.Mutex
	f       *os.File
	size    int64
	waiting []byte
	failed  error // why lines wait
	lost    error
}

// openLog opens a log to add to it.
func openLog(path string, limit int64) (*logFile, error) {
	l := &logFile{path: path, limit: limit}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	if err := endLine(f); err != nil {
		_ = f.Close()
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write adds a line.
func (l *logFile) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limit > 0 && l.size > 0 && l.size+int64(len(line)) > l.limit && len(l.waiting) == 0 {
		l.rotate()
	}
	l.waiting = append(l.waiting, line...)
	l.flush()
	if len(l.waiting) > backlog {
		l.waiting = newest(l.waiting)
		if l.lost == nil {
			l.lost = l.failed
		}
	}
	return len(line), nil
}

// flush writes what waits, as far as it goes.
func (l *logFile) flush() {
	n, err := l.f.Write(l.waiting)
	l.size += int64(n)
	if l.waiting = l.waiting[n:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	l.failed = err
}

// rotate begins a new file. Where it can't, the old one is added to.
func (l *logFile) rotate() {
	name := func(i int) string { return l.path + "." + strconv.Itoa(i) }
	for i := older - 1; i > 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	if os.Rename(l.path, name(1)) != nil {
		return
	}
	old := l.f
	if err := l.open(); err != nil {
		l.f = old // its lines go to path.1
		return
	}
	_ = old.Close() // every line of it was written
}

// Close closes the log. It returns the first error by which lines were lost.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		l.flush()
	}
	if l.lost == nil {
		l.lost = l.failed
	}
	return errors.Join(l.lost, l.f.Close())
}
