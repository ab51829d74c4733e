package observe

import (
	"net"
	"os"
	"strconv"
	"time"
)

// Systemd tells the service manager of a run, as sd_notify(3) does. Without one it does nothing.
type Systemd struct {
	socket string
	every  time.Duration
}

// NewSystemd looks for the service manager in the environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
func NewSystemd(getenv func(string) string) *Systemd {
	s := &Systemd{socket: getenv("NOTIFY_SOCKET")}
	if len(s.socket) > 0 && s.socket[0] == '@' {
		s.socket = "\x00" + s.socket[1:]
	}
	µs, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if pid := getenv("WATCHDOG_PID"); err == nil && µs > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.every = time.Duration(µs) * time.Microsecond
	}
	return s
}

// Watchdog is how long the service manager waits for WATCHDOG=1; 0 if it doesn't.
func (s *Systemd) Watchdog() time.Duration {
	if s.socket == "" {
		return 0
	}
	return s.every
}

// Tell sends lines such as READY=1. What can't be sent is no reason to end a run.
func (s *Systemd) Tell(state string) error {
	if s.socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = c.Write([]byte(state))
	if e := c.Close(); err == nil {
		err = e
	}
	return err
}
