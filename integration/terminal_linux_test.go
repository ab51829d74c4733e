package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal of the given width; the test is skipped where there is none.
func terminal(t *testing.T, columns uint16) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Skip(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func TestTerminalShowsALiveLine(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	ours, theirs := terminal(t, 100)
	cmd := exec.Command(flowrun(), "train.yaml")
	cmd.Dir, cmd.Stderr, cmd.Env = p.dir, theirs, append(os.Environ(), "TERM=xterm")
	p.check(cmd.Start())
	p.check(theirs.Close())
	screen := make(chan string)
	go func() {
		b, _ := io.ReadAll(ours) // ends with an error once nobody has the other end
		screen <- string(b)
	}()
	p.check(cmd.Wait())
	text := <-screen
	says(t, text, "\r\x1b[J", "step", "psnr", "ready", "done", "saved")
	if strings.Contains(text, `{"level"`) {
		t.Error("JSON on a terminal")
	}
	if end := strings.TrimRight(text, "\r\n"); end == text {
		t.Error("the prompt would stand behind the live line")
	}
}
