package observe

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/flowrun/flowrun/stages/files"
)

// Metrics writes a run's metrics.jsonl and metrics.csv, and keeps their history. One goroutine at a time may use it.
type Metrics struct {
	dir           string
	record, table *journal
	history       *History
}

// OpenMetrics opens the metrics of a run that goes on from step, 0 for a new one, to append to them. Lines of later
// steps, which the run will repeat, and lines that aren't whole are dropped; metrics.csv is made again from
// metrics.jsonl. Either file is replaced at once or not at all.
func OpenMetrics(dir string, step int) (*Metrics, error) {
	record, table := filepath.Join(dir, "metrics.jsonl"), filepath.Join(dir, "metrics.csv")
	m := &Metrics{dir: dir, history: newHistory()}
	sound, err := sound(record, step)
	if err == nil && !sound {
		err = replace(record, record, func(w io.Writer, r io.Reader) error { return copyRecord(w, r, step) })
	}
	if err == nil {
		err = replace(table, record, func(w io.Writer, r io.Reader) error { return tabulate(w, r, m.history) })
	}
	if err != nil {
		return nil, err
	}
	if m.record, err = openJournal(record); err != nil {
		return nil, err
	}
	if m.table, err = openJournal(table); err != nil {
		_ = m.record.Close()
		return nil, err
	}
	return m, nil
}

// Back takes back what was added behind a step, which the run will repeat.
func (m *Metrics) Back(step int) error {
	again, err := OpenMetrics(m.dir, step)
	if err != nil {
		return err
	}
	err = m.Close()
	m.record, m.table = again.record, again.table
	m.history.become(again.history)
	return err
}

// Train adds an optimiser step. A line that an error kept out of a file leaves no trace there; it waits, and is written
// before the next one, or by Flush.
func (m *Metrics) Train(s Step) error { return m.add(s.Step, s.fields()) }

// Validation adds a validation, as Train does a step.
func (m *Metrics) Validation(v Val) error { return m.add(v.Step, v.fields()) }

// History is all that was recorded, by earlier runs in the folder too.
func (m *Metrics) History() *History { return m.history }

// Flush writes what waits.
func (m *Metrics) Flush() error { return errors.Join(m.record.flush(), m.table.flush()) }

// Sync brings what metrics.jsonl has to the disk. metrics.csv is made anew from it.
func (m *Metrics) Sync() error { return errors.Join(m.Flush(), m.record.Sync()) }

// Close closes the files. What still waits is written, or lost with an error.
func (m *Metrics) Close() error { return errors.Join(m.Flush(), m.record.Close(), m.table.Close()) }

func (m *Metrics) add(step int, fields []field) error {
	m.history.add(step, fields)
	m.record.add(append(object(fields), '\n'))
	values := make(map[string]string, len(fields))
	for _, f := range fields {
		values[f.name], _ = cell(f.value)
	}
	var b bytes.Buffer
	table := csv.NewWriter(&b)
	if err := table.Write(row(values)); err != nil {
		return err
	}
	table.Flush()
	m.table.add(b.Bytes())
	return m.Flush()
}

// journal is a file that whole lines are added to.
type journal struct {
	file
	size    int64
	waiting []byte // lines
}

type file interface {
	io.WriteCloser
	Truncate(size int64) error
	Sync() error
}

func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &journal{file: f, size: size}, nil
}

// add has a line wait for flush. Of more than backlog bytes the oldest are lost.
func (j *journal) add(line []byte) { j.waiting = newest(append(j.waiting, line...)) }

// newest is the last of some lines, backlog bytes at most.
func newest(lines []byte) []byte {
	over := len(lines) - backlog
	if over <= 0 {
		return lines
	}
	for over < len(lines) && lines[over-1] != '\n' {
		over++
	}
	return bytes.Clone(lines[over:])
}

// flush writes all lines that wait, or none.
func (j *journal) flush() error {
	if len(j.waiting) == 0 {
		return nil
	}
	n, err := j.Write(j.waiting)
	if err != nil {
		if n > 0 {
			_ = j.Truncate(j.size)
		}
		return err
	}
	j.size += int64(n)
	j.waiting = j.waiting[:0]
	return nil
}

// row is the values in the order of the columns.
func row(values map[string]string) []string {
	names := columns()
	cells := make([]string, len(names))
	for i, name := range names {
		cells[i] = values[name]
	}
	return cells
}

// sound says that copyRecord would change nothing.
func sound(record string, step int) (bool, error) {
	f, err := os.Open(record)
	if err != nil {
		return false, ignore(err, fs.ErrNotExist)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	var kept tally
	err = copyRecord(&kept, f, step)
	return int64(kept) == info.Size(), err
}

func ignore(err, that error) error {
	if errors.Is(err, that) {
		return nil
	}
	return err
}

// tally counts the bytes that are written.
type tally int64

func (c *tally) Write(b []byte) (int, error) {
	*c += tally(len(b))
	return len(b), nil
}

// copyRecord copies the lines of a record up to a step.
func copyRecord(w io.Writer, record io.Reader, step int) error {
	var e entry
	return lines(record, func(line []byte) error {
		if !e.read(line) {
			return nil
		}
		if at, ok := e.step(); !ok || at > step {
			return nil
		}
		_, err := w.Write(line)
		return err
	})
}

// tabulate writes a record as a table, and gives it to a history.
func tabulate(w io.Writer, record io.Reader, h *History) error {
	table := csv.NewWriter(w)
	names := columns()
	if err := table.Write(names); err != nil {
		return err
	}
	places := map[string]int{}
	for i, name := range names {
		places[name] = i
	}
	cells := make([]string, len(names))
	var e entry
	err := lines(record, func(line []byte) error {
		e.read(line) // all lines of a record are sound
		clear(cells)
		for _, p := range e.pairs {
			if i, ok := places[string(p.name)]; ok {
				cells[i] = string(p.value)
			}
		}
		step, ok := e.step()
		if list, numbers := e.fields(); ok && numbers {
			h.add(step, list)
		}
		return table.Write(cells)
	})
	if err != nil {
		return err
	}
	table.Flush()
	return table.Error()
}

// longest bounds a line that is read back, in bytes. No record has one that is nearly as long.
const longest = 16 << 20

// lines calls f with each whole line, its end included. The line is f's until it returns. Lines that are too long are passed over.
func lines(r io.Reader, f func(line []byte) error) error {
	buffered := bufio.NewReaderSize(r, 1<<16)
	var line []byte
	tooLong := false
	for {
		part, err := buffered.ReadSlice('\n')
		if tooLong = tooLong || len(line)+len(part) > longest; !tooLong {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF:
			return nil // what follows the last line end is torn
		case err != nil:
			return err
		}
		if !tooLong {
			if err := f(line); err != nil {
				return err
			}
		}
		line, tooLong = line[:0], false
	}
}

// replace has write make path's new content of from's, or of nothing if from isn't there; path has the old or the new.
func replace(path, from string, write func(io.Writer, io.Reader) error) error {
	var r io.Reader = bytes.NewReader(nil)
	old, err := os.Open(from)
	if err == nil {
		defer func() { _ = old.Close() }()
		r = old
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return files.Write(path, func(f io.Writer) error {
		w := bufio.NewWriter(f)
		if err := write(w, r); err != nil {
			return err
		}
		return w.Flush()
	})
}
