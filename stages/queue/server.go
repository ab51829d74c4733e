package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Embedded is a NATS server inside this process. One that can't write to its store any more is started again when it can.
type Embedded struct {
	options *server.Options
	log     func(Event)
	failed  chan string // what the server says of a write that failed
	stop    context.CancelFunc
	joined  sync.WaitGroup

	mu     sync.Mutex
	server *server.Server
}

// startWithin is how long the embedded server may take to read its store.
const startWithin = 30 * time.Second

// maxPayload is what a server must take in one message.
const maxPayload = 32 << 20

// maxPending is what may be on its way to one client. Two patches are, and two more when it has taken these before the server
// has counted them off: at 64 MiB four patches of 256×256×128 made a busy machine's trainer a slow consumer, rarely.
const maxPending = 4 * maxPayload

// StartServer starts a server whose store is in dir, unless o names another folder. log is told what people should know; it may
// be nil.
func StartServer(o Server, dir string, log func(Event)) (*Embedded, error) {
	s := &server.Options{ServerName: "flowrun", DontListen: o.Listen == ""}
	if o.Config != "" {
		if err := s.ProcessConfigFile(o.Config); err != nil {
			return nil, fmt.Errorf("server.config: %s: %w", o.Config, plain(err))
		}
	}
	if o.Dir != "" {
		dir = o.Dir
	}
	if s.StoreDir == "" {
		s.StoreDir = dir
	}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return nil, fmt.Errorf("server.listen: %w", err)
		}
		if s.Host = host; host == "" {
			s.Host = "0.0.0.0"
		}
		if s.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("server.listen: %q isn't a port", port)
		}
		if s.Port == 0 {
			s.Port = server.RANDOM_PORT
		}
	}
	if err := os.MkdirAll(s.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("server.dir: %w", err)
	}
	s.NoSigs, s.NoLog, s.JetStream = true, true, true // signals and logs are the program's
	s.MaxPayload = max(s.MaxPayload, maxPayload)
	s.MaxPending = max(s.MaxPending, maxPending)
	s.SyncAlways = true
	if s.JetStreamMaxMemory <= 0 {
		s.JetStreamMaxMemory = 16 << 20
	}
	var err error
	if s.JetStreamMaxStore, err = storeLimit(s.StoreDir, o.Disk, s.JetStreamMaxStore); err != nil {
		return nil, err
	}
	e := &Embedded{options: s, log: log, failed: make(chan string, 1)}
	if e.log == nil {
		e.log = func(Event) {}
	}
	if err := e.start(); err != nil {
		return nil, err
	}
	if a, ok := e.server.Addr().(*net.TCPAddr); ok && a != nil {
		s.Port = a.Port // the same when it is started again
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	e.joined.Go(func() { e.watch(ctx) })
	return e, nil
}

// start starts the server; mu is held, or nobody knows of e yet.
func (e *Embedded) start() error {
	srv, err := server.NewServer(e.options.Clone())
	if err != nil {
		return fmt.Errorf("embedded NATS server: %w", plain(err))
	}
	srv.SetLoggerV2(&listener{e.failed}, false, false, false)
	srv.Start()
	switch {
	case !srv.ReadyForConnections(startWithin):
		err = fmt.Errorf("not ready after %v", startWithin)
		if !e.options.DontListen {
			err = fmt.Errorf("not ready after %v: is %s:%d taken?", startWithin, e.options.Host, e.options.Port)
		}
	case !srv.JetStreamEnabled():
		err = fmt.Errorf("no store in %s: is another server using it?", e.options.StoreDir)
	}
	if err != nil {
		srv.Shutdown()
		return fmt.Errorf("embedded NATS server: %w", err)
	}
	e.server = srv
	return nil
}

// storeLimit is what the store may take: asked for, else configured, and at most four fifths of what is free beside what
// the store has already.
func storeLimit(dir string, asked, configured int64) (int64, error) {
	limit := asked
	if limit == 0 {
		limit = configured
	}
	free, ok := freeBytes(dir)
	if !ok {
		return max(limit, 0), nil
	}
	room := (free + stored(dir)) / 5 * 4
	if limit > room {
		return 0, fmt.Errorf("server.disk: %s is more than four fifths of what is free for %s (%s)", size(limit), dir, size(room))
	}
	if limit <= 0 {
		limit = room
	}
	return limit, nil
}

// stored is the bytes of the files below dir.
func stored(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil // what can't be seen isn't counted
	})
	return n
}

// Stop ends the server when its store is on the disk.
func (e *Embedded) Stop() {
	e.stop()
	e.joined.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Shutdown()
	e.server.WaitForShutdown()
}

// InProcessConn is a connection from inside, to the server of now.
func (e *Embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server.InProcessConn()
}

// Address is where other processes reach it; "" where it doesn't listen.
func (e *Embedded) Address() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a, ok := e.server.Addr().(*net.TCPAddr); ok && a != nil {
		return "nats://" + a.String()
	}
	return ""
}

// plain is an error of a library without what may hold a secret: the value of a configuration's line.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return errors.New(redact(err.Error()))
}

// size is bytes in binary units.
func size(n int64) string {
	for _, u := range []struct {
		unit string
		n    int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.n), u.unit)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
