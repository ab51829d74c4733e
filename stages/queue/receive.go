package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Answers to a delivery.
var (
	ackWord      = []byte("+ACK")
	nakWord      = []byte("-NAK")
	termWord     = []byte("+TERM")
	progressWord = []byte("+WPI")
)

// delivery is a message that was given out.
type delivery struct {
	once    string // its Nats-Msg-Id: the same when it is given out again
	reply   string // where to answer
	headers nats.Header
	data    []byte
	tries   int // deliveries until now, this one included
}

// pullFor is how long a request for messages stands.
const pullFor = 5 * time.Second

// consumer takes messages from a stream and keeps the server from giving them to others. It asks for few at a time over one
// inbox that stays, so that what is long on its way over a slow link isn't lost.
type consumer struct {
	q      *Queue
	next   string // subject to ask at
	room   int    // messages that may wait here
	cancel context.CancelFunc
	joined sync.WaitGroup
	out    chan *delivery
	took   chan struct{}

	mu   sync.Mutex
	held map[string]string // where to answer, by identity: all that was given out and isn't settled
}

// consume begins to take messages. Close ends it.
func (q *Queue) consume(stream, name string, room int) (*consumer, error) {
	ctx, cancel := context.WithCancel(q.ctx)
	c := &consumer{q: q, next: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + name, room: room, cancel: cancel,
		out: make(chan *delivery, room), took: make(chan struct{}, 1), held: map[string]string{}}
	inbox, in := q.nc.NewInbox(), make(chan *nats.Msg, 4*room+64)
	sub, err := q.nc.ChanSubscribe(inbox, in)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%s: %w", stream, err)
	}
	c.joined.Go(func() { c.pull(ctx, inbox, in); _ = sub.Unsubscribe() })
	c.joined.Go(func() { c.beat(ctx) })
	return c, nil
}

// pull asks for messages and takes them in, until ctx ends.
func (c *consumer) pull(ctx context.Context, inbox string, in <-chan *nats.Msg) {
	asked := 0
	var since time.Time
	link := c.q.link()
	for ctx.Err() == nil {
		if link.Err() != nil { // what was asked for over the old connection is forgotten
			link, asked = c.q.link(), 0
		}
		if n := c.room - asked - len(c.out); n > 0 {
			body, _ := json.Marshal(map[string]int64{"batch": int64(n), "expires": int64(pullFor)}) // numbers always encode
			if err := c.q.nc.PublishRequest(c.next, inbox, body); err != nil {
				_ = pause(ctx, 100*time.Millisecond)
				continue
			}
			asked, since = asked+n, time.Now()
		}
		late := time.NewTimer(time.Until(since.Add(pullFor + 10*time.Second)))
		select {
		case m := <-in:
			asked = max(0, asked-c.take(ctx, m, asked))
		case <-c.took:
		case <-link.Done():
			_ = pause(ctx, 100*time.Millisecond)
		case <-late.C:
			asked = 0
		case <-ctx.Done():
		}
		late.Stop()
	}
}

// take takes a message in and says how many fewer are on their way: those that a request was told not to wait for, too.
func (c *consumer) take(ctx context.Context, m *nats.Msg, asked int) int {
	if status := m.Header.Get("Status"); status != "" {
		switch n, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages")); {
		case status == "100":
			return 0
		case status == "408" && err == nil:
			return n
		case status != "408" && status != "404":
			_ = pause(ctx, 200*time.Millisecond) // the stream isn't there, or its server is coming up
		}
		return asked
	}
	d := &delivery{reply: m.Reply, headers: m.Header, data: m.Data, tries: 1, once: m.Header.Get(nats.MsgIdHdr)}
	if meta, err := m.Metadata(); err == nil {
		d.tries = int(min(meta.NumDelivered, most))
		if d.once == "" {
			d.once = "#" + strconv.FormatUint(meta.Sequence.Stream, 10)
		}
	}
	c.mu.Lock()
	_, again := c.held[d.once]
	c.held[d.once] = d.reply // the newest handle is the one that counts
	c.mu.Unlock()
	if again {
		return 1
	}
	select {
	case c.out <- d:
	case <-ctx.Done():
	}
	return 1
}

// receive gives the next message.
func (c *consumer) receive(ctx context.Context) (*delivery, error) {
	select {
	case d := <-c.out:
		c.freed()
		return d, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.q.ctx.Done():
		return nil, context.Cause(c.q.ctx)
	}
}

// beat tells the server that what is held is worked on.
func (c *consumer) beat(ctx context.Context) {
	tick := time.NewTicker(c.q.o.ackWait() / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, reply := range c.replies() {
			_ = c.q.nc.Publish(reply, progressWord) // lost while disconnected: then it may come again
		}
	}
}

func (c *consumer) replies() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]string, 0, len(c.held))
	for _, reply := range c.held {
		list = append(list, reply)
	}
	return list
}

// count is how many messages are held.
func (c *consumer) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.held)
}

// errAckUnknown says that the server didn't confirm an ack. It may have taken it. Or it doesn't know of the delivery any more,
// after a kill -9: then it ignores the ack for good, and gives the message out again as if for the first time.
var errAckUnknown = errors.New("the server didn't confirm an acknowledgement; the message may come again")

// settle answers for a message and holds it no more. An ack is asked to be confirmed, three times and not for ever: what
// comes again is known by its identity.
func (c *consumer) settle(ctx context.Context, once string, word []byte) error {
	defer func() {
		c.mu.Lock()
		delete(c.held, once)
		c.mu.Unlock()
	}()
	for range 3 {
		c.mu.Lock()
		reply, ok := c.held[once]
		c.mu.Unlock()
		if !ok {
			return nil
		}
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.q.nc.RequestWithContext(try, reply, word)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return errAckUnknown
}

// later gives a message back, to come again in a while.
func (c *consumer) later(once string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.q.nc.Publish(c.held[once], []byte(`-NAK {"delay": 5000000000}`)) // lost: it comes again after ack_wait
	delete(c.held, once)
}

// handBack gives back all that is held, so that others needn't wait for it.
func (c *consumer) handBack() {
	for _, reply := range c.replies() {
		_ = c.q.nc.Publish(reply, nakWord) // lost: it comes again after ack_wait
	}
	c.mu.Lock()
	clear(c.held)
	c.mu.Unlock()
}

// freed tells pull that there is room for more.
func (c *consumer) freed() {
	select {
	case c.took <- struct{}{}:
	default:
	}
}

// empty drops what waits here; it is held still.
func (c *consumer) empty() {
	for {
		select {
		case <-c.out:
			c.freed()
		default:
			return
		}
	}
}

// close ends taking and gives back what is held.
func (c *consumer) close() {
	c.cancel()
	c.joined.Wait()
	c.handBack()
	c.q.flush()
}
