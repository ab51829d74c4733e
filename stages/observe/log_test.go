package observe

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestLoggerOnATerminalAndOnAPipe(t *testing.T) {
	for _, c := range []struct {
		terminal, quiet bool
		want            string
	}{
		{false, false, `^\{"level":"info","event":"start","scans":3,"time":"[^"]+","message":"ready"\}\n\{"level":"warn","time":"[^"]+","message":"odd"\}\n$`},
		{false, true, `^\{"level":"warn","time":"[^"]+","message":"odd"\}\n$`},
		{true, false, `ready.*scans=.*3.*\n.*odd.*\n$`},
		{true, true, `^[^\n]*odd[^\n]*\n$`},
	} {
		dir := t.TempDir()
		var b strings.Builder
		log, closeLog, err := Logger(LogOptions{Dir: dir, Stderr: &b, Terminal: c.terminal, Quiet: c.quiet})
		check(t, err)
		log.Info().Str("event", "start").Int("scans", 3).Msg("ready")
		log.Warn().Msg("odd")
		log.Debug().Msg("detail")
		log.Error().Msg("the end")
		check(t, closeLog())
		if !regexp.MustCompile(c.want).MatchString(b.String()) {
			t.Errorf("terminal %v, quiet %v: %q", c.terminal, c.quiet, b.String())
		}
		if c.terminal && strings.Contains(b.String(), "event") {
			t.Errorf("people needn't see %q", b.String())
		}
		if got := read(t, dir, "log.jsonl"); strings.Count(got, "\n") != 3 || !strings.Contains(got, `"event":"start"`) || !strings.Contains(got, "the end") {
			t.Errorf("log.jsonl: %q", got)
		}
	}
}

func TestLoggerAddsToALogAndEndsItsTornLine(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "log.jsonl"), []byte("{\"level\":\"info\"}\n{\"lev"), 0o666))
	for range 2 {
		log, closeLog, err := Logger(LogOptions{Dir: dir, Stderr: &strings.Builder{}})
		check(t, err)
		log.Info().Msg("m")
		check(t, closeLog())
	}
	lines := strings.Split(read(t, dir, "log.jsonl"), "\n")
	if len(lines) != 5 || lines[1] != `{"lev` || !strings.HasSuffix(lines[3], `"m"}`) || lines[4] != "" {
		t.Errorf("%q", lines)
	}
}

type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

func TestLogThatCannotBeWrittenDoesNotStopTheOther(t *testing.T) {
	dir := t.TempDir()
	log, closeLog, err := Logger(LogOptions{Dir: dir, Stderr: broken{errors.New("gone")}, Terminal: true})
	check(t, err)
	log.Info().Msg("m")
	check(t, closeLog())
	if !strings.Contains(read(t, dir, "log.jsonl"), `"m"`) {
		t.Error("the file has no line")
	}
	var b strings.Builder
	log, closeLog, err = Logger(LogOptions{Dir: dir, Stderr: &b})
	check(t, err)
	log.Info().Msg("n")
	check(t, closeLog())
	log.Info().Msg("after close")
	if !strings.Contains(b.String(), "after close") {
		t.Errorf("%q", b.String())
	}
	if closeLog() == nil {
		t.Error("the failed write isn't told")
	}
}

func TestLoggerSaysWhereItCannotLog(t *testing.T) {
	if _, _, err := Logger(LogOptions{Dir: filepath.Join(t.TempDir(), "none"), Stderr: &strings.Builder{}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLockRun(t *testing.T) {
	if dir := os.Getenv("OBSERVE_TEST_LOCK"); dir != "" { // the other process
		_, err := LockRun(dir)
		check(t, err)
		_, _ = os.Stdout.WriteString("locked\n")
		time.Sleep(time.Minute)
		return
	}
	dir := t.TempDir()
	lock, err := LockRun(dir)
	check(t, err)
	if _, err := LockRun(dir); err == nil || !regexp.MustCompile(`^another flowrun \(pid \d+\) is running in .+: choose another folder or stop it$`).MatchString(err.Error()) {
		t.Errorf("got %v", err)
	}
	lock.Unlock()

	other := exec.Command(os.Args[0], "-test.run=^TestLockRun$")
	other.Env = append(os.Environ(), "OBSERVE_TEST_LOCK="+dir)
	out, err := other.StdoutPipe()
	check(t, err)
	check(t, other.Start())
	if _, err := out.Read(make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	if _, err := LockRun(dir); err == nil {
		t.Error("locked twice by two processes")
	}
	check(t, other.Process.Kill())
	_ = other.Wait()
	lock, err = LockRun(dir)
	check(t, err) // a killed run's lock is free
	lock.Unlock()
	if _, err := LockRun(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// A run knows that its folder is another one by now.
func TestLockIsOfTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	check(t, os.Mkdir(dir, 0o777))
	lock, err := LockRun(dir)
	check(t, err)
	check(t, lock.Held())
	check(t, os.RemoveAll(dir))
	removed := lock.Held()
	check(t, os.Mkdir(dir, 0o777))
	other, err := LockRun(dir)
	check(t, err)
	defer other.Unlock()
	check(t, other.Held())
	for _, err := range []error{removed, lock.Held()} {
		if err == nil || !strings.Contains(err.Error(), dir+" was removed or replaced") {
			t.Error(err)
		}
	}
	lock.Unlock()
	if _, err := LockRun(dir); err == nil || !strings.Contains(err.Error(), "(pid ") {
		t.Errorf("the other run's lock: %v", err)
	}
	var none *RunLock
	check(t, none.Held())
}

func TestResources(t *testing.T) {
	rss, goroutines := Resources()
	if runtime.GOOS == "linux" && (rss < 1<<20 || rss > 1<<40) || goroutines < 1 {
		t.Errorf("%d bytes, %d goroutines", rss, goroutines)
	}
}
