package observe

import (
	"io"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"
)

// LogOptions say where a Logger logs to.
type LogOptions struct {
	Dir      string    // where log.jsonl is added to
	Size     int64     // bytes at which it becomes log.jsonl.1; 0: never
	Stderr   io.Writer // give it a Progress, so that lines don't break the live one
	Terminal bool      // Stderr gets lines for people, else JSON lines
	Quiet    bool      // Stderr gets warnings only
	Also     io.Writer // gets all lines that the file gets; nil: none
}

// Logger logs to log.jsonl and to stderr. An error, which ends a run, isn't told on stderr: there it is the command's last
// line. The second result closes the file, and gives the first error by which it lost a line.
func Logger(o LogOptions) (zerolog.Logger, func() error, error) {
	file, err := openLog(filepath.Join(o.Dir, logName), o.Size)
	if err != nil {
		return zerolog.Nop(), nil, err
	}
	out := o.Stderr
	if o.Terminal {
		out = zerolog.ConsoleWriter{Out: o.Stderr, TimeFormat: "15:04:05", FieldsExclude: []string{"event"}}
	}
	level := zerolog.InfoLevel
	if o.Quiet {
		level = zerolog.WarnLevel
	}
	writers := []io.Writer{file, between{&sticky{w: out}, level, zerolog.WarnLevel}}
	if o.Also != nil {
		writers = append(writers, o.Also)
	}
	logger := zerolog.New(zerolog.MultiLevelWriter(writers...)).Level(zerolog.InfoLevel).With().Timestamp().Logger()
	return logger, file.Close, nil
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

// sticky is a writer that never fails: a closed pipe must not end a run because of its log.
type sticky struct{ w io.Writer }

func (s *sticky) Write(b []byte) (int, error) {
	_, _ = s.w.Write(b)
	return len(b), nil
}
