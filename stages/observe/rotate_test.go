package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A log stays within its limit in each of its files, and the newest lines are all there, in order.
func TestLogRotates(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		check(t, err)
		limit := rapid.IntRange(30, 200).Draw(rt, "limit")
		var written []string
		for range rapid.IntRange(1, 3).Draw(rt, "sessions") {
			l, err := openLog(filepath.Join(dir, logName), int64(limit))
			check(t, err)
			for range rapid.IntRange(0, 30).Draw(rt, "lines") {
				line := fmt.Sprintf("%d%s\n", len(written), strings.Repeat("x", rapid.IntRange(0, 20).Draw(rt, "length")))
				n, err := l.Write([]byte(line))
				if n != len(line) || err != nil {
					rt.Fatalf("wrote %d of %d: %v", n, len(line), err)
				}
				written = append(written, line)
			}
			check(t, l.Close())
		}
		var text string
		for i := older; i >= 0; i-- {
			name := logName
			if i > 0 {
				name = fmt.Sprintf("%s.%d", logName, i)
			}
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil && len(b) > limit {
				rt.Fatalf("%s has %d bytes, want at most %d", name, len(b), limit)
			}
			text += string(b)
		}
		all := strings.Join(written, "")
		if !strings.HasSuffix(all, text) || len(text) < len(all) && len(text) < 2*limit {
			rt.Fatalf("kept %q\nof %q", text, all)
		}
	})
}

// What a disk doesn't take waits, and is written once it does; what is too much is lost and told.
func TestLogWaitsForRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	l, err := openLog(path, 0)
	check(t, err)
	write := func(line string) {
		t.Helper()
		n, err := l.Write([]byte(line))
		if n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	write("1\n")
	file := l.f
	l.f, err = os.Open(path) // can't be written to
	check(t, err)
	write("2\n")
	write("3\n")
	check(t, l.f.Close())
	l.f = file
	write("4\n")
	if got := read(t, filepath.Dir(path), logName); got != "1\n2\n3\n4\n" {
		t.Errorf("%q", got)
	}
	l.f, err = os.Open(path)
	check(t, err)
	long := strings.Repeat("y", backlog/2) + "\n"
	for range 4 {
		write(long)
	}
	if len(l.waiting) != len(long) {
		t.Errorf("%d bytes wait, want one line", len(l.waiting))
	}
	if l.Close() == nil {
		t.Error("lines were lost, and nobody is told")
	}
}

func TestIncidents(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	for session := range 2 {
		list, err := ReadIncidents(dir)
		check(t, err)
		log, closeLog, err := Logger(LogOptions{Dir: dir, Stderr: &b, Also: list})
		check(t, err)
		log.Info().Str("event", "start").Int("scans", 3).Msg("ready")
		log.Info().Str("event", "checkpoint").Msg("saved")
		log.Warn().Str("scan", "a.nii").Strs("warnings", []string{"odd", "old"}).Float64("x", 1.0/3).Bytes("stack", []byte("goroutine 1")).Msg("scan read with warnings")
		check(t, closeLog())
		all := list.All()
		if len(all) != 2*(session+1) {
			t.Fatalf("session %d: %+v", session, all)
		}
		for i := 0; i < len(all); i += 2 {
			first, second := all[i], all[i+1]
			if first.Event != "start" || first.Detail != "scans 3" || first.Message != "ready" || first.Time.IsZero() {
				t.Errorf("got %+v", first)
			}
			if second.Level != "warn" || second.Detail != "scan a.nii; warnings odd, old; x 0.333333" {
				t.Errorf("got %+v", second)
			}
		}
	}
	list := new(Incidents)
	for i := range most + 5 {
		_, _ = fmt.Fprintf(list, `{"level":"warn","message":"%d"}`, i)
		_, _ = fmt.Fprintf(list, `not a line`)
	}
	if all := list.All(); len(all) != most || all[0].Message != "5" {
		t.Errorf("%d incidents from %q on", len(all), all[0].Message)
	}
}
