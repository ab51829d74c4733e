package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Roles of a connection.
const (
	Publisher = "publisher"
	Worker    = "worker"
	Trainer   = "trainer"
	Admin     = "admin"
)

// Config is what a connection needs beside its options.
type Config struct {
	Options
	Embedded *Embedded     // the server to use where Options name none
	Log      func(Event)   // told what people should know; may be nil
	Wait     time.Duration // for a server that isn't there yet; 0: ten seconds
	ping     time.Duration // of tests; 0: pingEvery
}

// Event is something that happened to a connection.
type Event struct {
	Warn bool
	Text string
}

// Queue is a run's streams, seen over one connection. It is safe for concurrent use.
type Queue struct {
	Role string

	o      Options
	names  names
	inside bool // the server is in this process
	log    func(Event)
	nc     *nats.Conn
	js     jetstream.JetStream
	ctx    context.Context // ends when the connection can't be used any more
	fail   context.CancelCauseFunc

	mu      sync.Mutex
	linked  context.Context // ends when the connection breaks; then there is a new one
	broken  context.CancelFunc
	waiting string // what a publisher waits for
}

// ErrRefused is an error of the server's: wrong credentials, or a permission that is missing. No retry mends it.
var ErrRefused = errors.New("the NATS server refuses this client")

// ErrTLS is a handshake that comes to nothing: the two ends don't take each other's certificates.
var ErrTLS = errors.New("no TLS connection to the NATS server")

// ErrFeature is a server that can't do what flowrun needs.
var ErrFeature = errors.New("the NATS server can't be used")

// oldest is the oldest version of nats-server that keeps what streams are asked for here.
var oldest = [3]int{2, 9, 0}

// Open connects to a server in a role. Close ends it.
func Open(ctx context.Context, c Config, role string) (*Queue, error) {
	if c.Name == "" {
		return nil, errors.New("name: is empty (want what this run is called on the server)")
	}
	q := &Queue{Role: role, o: c.Options, names: names{c.Name}, log: c.Log}
	if q.log == nil {
		q.log = func(Event) {}
	}
	q.ctx, q.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	q.linked, q.broken = context.WithCancel(q.ctx)
	url, list, err := c.credentials()
	if err != nil {
		return nil, err
	}
	for _, set := range list {
		if err := set(&nats.Options{}); err != nil { // else it would look as if the server weren't there
			return nil, fmt.Errorf("tls: %w", plain(err))
		}
	}
	list = append(list, q.options()...)
	if c.Embedded != nil && !c.External() {
		list, q.inside = append(list, nats.InProcessServer(c.Embedded)), true
	}
	if c.ping > 0 {
		list = append(list, nats.PingInterval(c.ping))
	}
	wait := c.Wait
	if wait == 0 {
		wait = 10 * time.Second
	}
	if err := q.dial(ctx, url, list, wait); err != nil {
		return nil, err
	}
	if q.js, err = jetstream.New(q.nc, jetstream.WithDefaultTimeout(5*time.Second)); err == nil {
		err = q.suits()
	}
	if err != nil {
		q.nc.Close()
		return nil, err
	}
	return q, nil
}

// A link that swallows everything is noticed when so many pings are without an answer.
const (
	pingEvery = 5 * time.Second
	pingsOut  = 2
)

// options are those of every role; the numbers are the ones that the failure tests settled on.
func (q *Queue) options() []nats.Option {
	return []nats.Option{
		nats.Name("flowrun " + q.Role + " " + q.names.run),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 500*time.Millisecond),
		nats.ReconnectBufSize(-1), // what can't be sent now fails now, and is sent again with the same identity
		nats.PingInterval(pingEvery),
		nats.MaxPingsOutstanding(pingsOut),
		nats.FlusherTimeout(10 * time.Second),
		nats.Timeout(5 * time.Second),
		nats.CustomInboxPrefix("_INBOX_" + q.Role),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if expired(err) { // a new file may be there: it is read again by the next try, whose refusal counts
				q.log(Event{true, "queue: the credentials have expired; trying those that the file holds now"})
				return
			}
			q.trouble(err)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			q.cut()
			if err != nil {
				q.log(Event{true, "queue: the connection is gone: " + redact(err.Error())})
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if refusal(err) {
				q.trouble(err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			q.log(Event{false, "queue: connected again to " + c.ConnectedUrlRedacted()})
		}),
		nats.ClosedHandler(func(c *nats.Conn) {
			if err := c.LastError(); err != nil {
				q.trouble(err)
			}
			q.fail(errors.New("the connection to the NATS server was closed"))
		}),
	}
}

// trouble ends the connection's use where an error is the server's refusal. Others mend by themselves.
func (q *Queue) trouble(err error) {
	if refusal(err) {
		q.fail(fmt.Errorf("%w: %s; docs/nats.md lists what the role %s may need", ErrRefused, redact(err.Error()), q.Role))
		return
	}
	q.log(Event{true, "queue: " + redact(err.Error())})
}

// dial connects; a server that isn't there yet is waited for.
func (q *Queue) dial(ctx context.Context, url string, list []nats.Option, wait time.Duration) error {
	end := time.Now().Add(wait)
	for {
		nc, err := nats.Connect(url, list...)
		if err == nil {
			q.nc = nc
			return nil
		}
		where := url
		if where == "" {
			where = "the embedded server"
		}
		switch {
		case refusal(err):
			return fmt.Errorf("%w: %s: %s; are these the credentials of the role %s?", ErrRefused, where, redact(err.Error()), q.Role)
		case untrusted(err):
			return fmt.Errorf("%w: %s: %s; look at queue.tls (or ca, cert and key of the context) and at the server's certificate", ErrTLS, where, redact(err.Error()))
		case time.Now().After(end):
			return fmt.Errorf("%s: %s; is the server running there?", where, redact(err.Error()))
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// untrusted says that the two ends don't take each other's certificates, or that one of them wants TLS and the other doesn't.
func untrusted(err error) bool {
	text := err.Error()
	return strings.Contains(text, "x509") || strings.Contains(text, "tls:") || strings.Contains(text, "certificate") ||
		errors.Is(err, nats.ErrSecureConnRequired) || errors.Is(err, nats.ErrSecureConnWanted)
}

// suits refuses servers without what is needed.
func (q *Queue) suits() error {
	version := q.nc.ConnectedServerVersion()
	if older(version, oldest) {
		return fmt.Errorf("%w: version %s (want %d.%d or later)", ErrFeature, version, oldest[0], oldest[1])
	}
	if n := q.nc.MaxPayload(); n < maxBody {
		return fmt.Errorf("%w: max_payload is %s; set max_payload: 33554432 in its configuration (version %s)", ErrFeature, size(n), version)
	}
	if on, _ := q.nc.ConnectedServerJetStream(); !on && q.nc.IsConnected() {
		return fmt.Errorf("%w: JetStream isn't enabled (version %s): add a jetstream block to its configuration", ErrFeature, version)
	}
	if !q.nc.HeadersSupported() {
		return fmt.Errorf("%w: version %s has headers switched off", ErrFeature, version)
	}
	return nil
}

// older says that a version is before another one.
func older(version string, than [3]int) bool {
	version, _, _ = strings.Cut(version, "-")
	for i, part := range strings.SplitN(version, ".", 3) {
		n, err := strconv.Atoi(part)
		if err != nil {
			return false // a development version
		}
		if n != than[i] {
			return n < than[i]
		}
	}
	return false
}

// Close ends the connection. What is held goes back to the queue when the server notices.
func (q *Queue) Close() {
	q.fail(errors.New("closed"))
	q.flush()
	q.nc.Close()
}

// flush gives what was said last two seconds to get away.
func (q *Queue) flush() {
	if q.nc.IsConnected() {
		_ = q.nc.FlushTimeout(2 * time.Second) // best effort
	}
}

// bind gives a context that ends with ctx, and with the connection.
func (q *Queue) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(q.ctx, func() { cancel(context.Cause(q.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// settling is how long a server that has just come up may take to answer.
const settling = 20 * time.Second

// patiently calls f again while the connection is down or the server is coming up.
func (q *Queue) patiently(ctx context.Context, f func() error) error {
	for end := time.Now().Add(settling); ; {
		err := f()
		if err == nil || ctx.Err() != nil || q.ctx.Err() != nil || !outage(err) || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// outage says that an error may pass by itself.
func outage(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503
	}
	for _, e := range []error{nats.ErrReconnectBufExceeded, nats.ErrDisconnected, nats.ErrTimeout, nats.ErrConnectionReconnecting,
		nats.ErrNoResponders, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// link is a context that ends when the connection of now breaks.
func (q *Queue) link() context.Context {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.linked
}

func (q *Queue) cut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.broken()
	q.linked, q.broken = context.WithCancel(q.ctx)
}

func (q *Queue) setWaiting(why string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = why
}

// Waiting says what publishing waits for; "" if it doesn't.
func (q *Queue) Waiting() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

// Name is the run's.
func (q *Queue) Name() string { return q.names.run }

// Server says which server it is, without secrets.
func (q *Queue) Server() string {
	where := q.nc.ConnectedUrlRedacted()
	if q.inside {
		where = "the embedded server"
	}
	return fmt.Sprintf("%s (nats-server %s)", where, q.nc.ConnectedServerVersion())
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// self names this process for people who look at who is connected.
func self() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return host + ":" + strconv.Itoa(os.Getpid())
}
