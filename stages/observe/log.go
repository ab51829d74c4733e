package observe

import (
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"
)

// Logger logs to log.jsonl in dir, which it adds to, and to stderr: as lines for people on a terminal, as JSON lines
// otherwise; if quiet, only warnings. Give it a Progress as stderr, so that lines don't break the live one. An error,
// which ends a run, goes to the file only: on stderr it is the command's last line. The second result closes the file,
// and gives the first error of writing to it.
func Logger(dir string, stderr io.Writer, terminal, quiet bool) (zerolog.Logger, func() error, error) {
	f, err := os.OpenFile(filepath.Join(dir, "log.jsonl"), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		return zerolog.Nop(), nil, err
	}
	if err := endLine(f); err != nil {
		_ = f.Close()
		return zerolog.Nop(), nil, err
	}
	file := &sticky{w: f}
	out := stderr
	if terminal {
		out = zerolog.ConsoleWriter{Out: stderr, TimeFormat: "15:04:05", FieldsExclude: []string{"event"}}
	}
	level := zerolog.InfoLevel
	if quiet {
		level = zerolog.WarnLevel
	}
	people := between{&sticky{w: out}, level, zerolog.WarnLevel}
	logger := zerolog.New(zerolog.MultiLevelWriter(file, people)).Level(zerolog.InfoLevel).With().Timestamp().Logger()
	return logger, func() error {
		err := f.Close()
		if file.err != nil {
			return file.err
		}
		return err
	}, nil
}

// between writes what has a level from least to most.
type between struct {
	io.Writer
	least, most zerolog.Level
}

func (b between) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	if level < b.least || level > b.most {
		return len(line), nil
	}
	return b.Write(line)
}

// endLine ends a line that a killed run left torn.
func endLine(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], info.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = f.Write([]byte{'\n'})
	return err
}

// sticky is a writer that never fails: a full disk or a closed pipe must not end a run because of its log. It keeps
// the first error.
type sticky struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

func (s *sticky) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.w.Write(b); err != nil && s.err == nil {
		s.err = err
	}
	return len(b), nil
}
