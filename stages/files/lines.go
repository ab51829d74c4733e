package files

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Lines is a file of JSON lines, one for each T, that grows. One goroutine at a time may use it.
type Lines[T any] struct {
	path string
	size int64 // of the whole lines; a torn one behind them is written over
	open bool  // the last whole line isn't ended
}

// OpenLines reads what the file has: nothing if it isn't there. Empty lines and a last one that was torn are passed over; one that
// only isn't ended, as an editor may leave it, counts. So T is an object: no part of a number's line may be a number. A line
// for which valid is false is an error, in which T is called what. Errors name the path.
func OpenLines[T any](path, what string, valid func(T) bool) (*Lines[T], []T, error) {
	text, err := Read(path, Most)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	l := &Lines[T]{path: path}
	var list []T
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		if !whole && !json.Valid(line) {
			return l, list, nil
		}
		text, l.size, l.open = rest, l.size+int64(len(line)), !whole
		if whole {
			l.size++
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var x T
		if err := json.Unmarshal(line, &x); err != nil || !valid(x) {
			return nil, nil, fmt.Errorf("%s: line %d isn't %s (mend or remove the line)", path, n, what)
		}
		list = append(list, x)
	}
}

// Add puts a line at the end and onto the disk; the first one makes the file. After an error, which names the path, it may be
// tried again.
func (l *Lines[T]) Add(x T) error {
	line, err := json.Marshal(x)
	if err == nil {
		line = append(line, '\n')
		if l.open {
			line = append([]byte{'\n'}, line...)
		}
		err = l.write(line)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, Reason(err))
	}
	l.size, l.open = l.size+int64(len(line)), false
	return nil
}

func (l *Lines[T]) write(line []byte) (err error) {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(l.size); err != nil {
		return err
	}
	if _, err := f.WriteAt(line, l.size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil || l.size > 0 {
		return err
	}
	return SyncDir(filepath.Dir(l.path))
}
