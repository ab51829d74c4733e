package pipe

import (
	"fmt"
	"reflect"

	"github.com/reugn/go-streams"
	"github.com/reugn/go-streams/flow"
)

// node is the go-streams operator that every stage is: Source, Flow and Sink in one. A source has nothing to read from, of a
// sink nobody reads.
type node struct {
	g *Graph
	m *meter

	in    chan any   // for outlets of others
	from  <-chan any // what is read: in, or the output of the node before
	out   chan any
	done  chan struct{}
	ended bool            // the input has closed
	until <-chan struct{} // once closed, the input isn't waited for; nil: never

	restless bool // in of a transform gives a zero element before the input is waited for

	before *node         // whose output is read, if that is a node
	idle   chan struct{} // closed once who reads the output only drops it

	alone bool  // body's goroutine is the stage's only worker: receive and send note its waiting
	keeps bool  // what comes in is inside until it is sent, else until the next is asked for
	last  int64 // bytes of the element received last, where it isn't kept
	tally bool  // elements in or out may have bytes
}

var (
	_ streams.Source = (*node)(nil)
	_ streams.Flow   = (*node)(nil)
	_ streams.Sink   = (*node)(nil)
)

// edge is an output and who has taken it. Graph.mu guards taker.
type edge struct {
	from  *node
	taker *node
}

// Port is an output of type T, to be taken by exactly one operator.
type Port[T any] struct {
	g    *Graph
	edge *edge
}

// newNode returns the node of a stage whose only worker is body's goroutine.
func newNode(g *Graph, stage string) *node {
	n := metered(g, newMeter(stage, 1, working))
	n.alone = true
	return n
}

// metered adds a node to the graph.
func metered(g *Graph, m *meter) *node {
	n := &node{g: g, m: m, in: make(chan any), out: make(chan any), done: make(chan struct{}), idle: make(chan struct{})}
	n.from = n.in
	g.mu.Lock()
	g.meters = append(g.meters, n.m)
	g.mu.Unlock()
	return n
}

// port is the node's output as a Port.
func port[T any](n *node) Port[T] {
	e := &edge{from: n}
	n.tally = n.tally || mayBe[Sizer](reflect.TypeFor[T]())
	n.g.mu.Lock()
	n.g.edges = append(n.g.edges, e)
	n.g.mu.Unlock()
	return Port[T]{n.g, e}
}

// take makes the port's output n's input: between two nodes there is nothing but a channel.
func take[T any](in Port[T], n *node) {
	n.tally = n.tally || mayBe[Sizer](reflect.TypeFor[T]())
	if from := n.claim(in.edge); from != nil {
		n.from, n.before = from.out, from
	} else {
		close(n.in)
	}
}

// claim returns the node whose output e is; nil, and the graph fails, if somebody has taken it already.
func (n *node) claim(e *edge) *node {
	n.g.mu.Lock()
	defer n.g.mu.Unlock()
	if e.taker != nil {
		n.g.fail(n.m.stage, fmt.Errorf("the output of %s already goes to %s", e.from.m.stage, e.taker.m.stage))
		return nil
	}
	e.taker = n
	return e.from
}

func (g *Graph) dangling() []*edge {
	g.mu.Lock()
	defer g.mu.Unlock()
	var free []*edge
	for _, e := range g.edges {
		if e.taker == nil {
			free = append(free, e)
		}
	}
	return free
}

// In is the inlet for go-streams operators.
func (n *node) In() chan<- any { return n.in }

// Out is the outlet.
func (n *node) Out() <-chan any { return n.out }

// Via feeds f and returns it.
func (n *node) Via(f streams.Flow) streams.Flow {
	flow.DoStream(n, f)
	return f
}

// To feeds s and waits for it.
func (n *node) To(s streams.Sink) {
	flow.DoStream(n, s)
	s.AwaitCompletion()
}

// AwaitCompletion waits until the node has ended.
func (n *node) AwaitCompletion() { <-n.done }

// start runs body. The input is read until it closes, whatever happens in body; who sends it is told that nobody wants it.
func (n *node) start(body func() error) {
	n.g.running.Go(func() {
		defer close(n.done)
		defer n.drain()
		defer close(n.out)
		defer n.m.finish()
		n.g.guard(n.m.stage, body)
	})
}

func (n *node) drain() {
	if n.from == nil {
		return
	}
	if n.before != nil {
		close(n.before.idle)
	}
	for v := range n.from {
		n.drop(v)
	}
}

// drop releases v, or each element of the slice v. A panic in Release fails the stage.
func (n *node) drop(v any) {
	for r := range releasers(v) {
		n.g.guard(n.m.stage, func() error { r.Release(); return nil })
	}
}

// size is the bytes of v. A panic in Bytes fails the stage.
func (n *node) size(v any) (bytes int64) {
	if n.tally {
		n.g.guard(n.m.stage, func() error { bytes = size(v); return nil })
	}
	return bytes
}

// move notes what the only worker does.
func (n *node) move(from, to doing, in, out, bytes int64) {
	if !n.alone {
		from, to = working, working
	}
	n.m.note(from, to, in, out, bytes)
}

// receive returns the next element; false at the end of the input and after a hard stop.
func receive[T any](n *node) (T, bool) {
	v, ok := n.receive()
	return typed[T](n, v, ok)
}

// receiveNow is receive where that doesn't wait; else now is false.
func receiveNow[T any](n *node) (v T, ok, now bool) {
	e, ok, now := n.receiveNow()
	v, ok = typed[T](n, e, ok)
	return v, ok, now
}

func typed[T any](n *node, v any, ok bool) (T, bool) {
	var none T
	if !ok {
		return none, false
	}
	if v == nil {
		return none, true
	}
	t, ok := v.(T)
	if !ok {
		n.drop(v)
		n.g.fail(n.m.stage, fmt.Errorf("got %T, want %v", v, reflect.TypeFor[T]()))
	}
	return t, ok
}

func (n *node) receiveNow() (v any, ok, now bool) {
	if n.g.hard() || n.ended || isClosed(n.until) {
		return nil, false, true
	}
	if n.last != 0 {
		n.m.note(working, working, 0, 0, -n.last)
		n.last = 0
	}
	select {
	case v, ok = <-n.from:
		v, ok = n.received(v, ok, working)
		return v, ok, true
	default:
		return nil, false, false
	}
}

func (n *node) receive() (any, bool) {
	if v, ok, now := n.receiveNow(); now { // the common case where nobody waits needs no clock
		return v, ok
	}
	n.move(working, starved, 0, 0, 0)
	select {
	case v, ok := <-n.from:
		return n.received(v, ok, starved)
	case <-n.until:
	case <-n.g.ctx.Done():
	}
	n.move(starved, working, 0, 0, 0)
	return nil, false
}

func (n *node) received(v any, ok bool, was doing) (any, bool) {
	if !ok {
		n.ended = true
		n.move(was, working, 0, 0, 0)
		return nil, false
	}
	bytes := n.size(v)
	n.move(was, working, 1, 0, bytes)
	if !n.keeps {
		n.last = bytes
	}
	return v, true
}

// send hands v to the next stage; after a hard stop, once until ends, or where the next stage has ended, it drops v and returns false.
func (n *node) send(v any, until <-chan struct{}) bool {
	var bytes, before int64
	if n.tally {
		bytes = n.size(v)
		if !n.keeps {
			before = bytes
		}
	}
	if isClosed(until) || isClosed(n.idle) {
		n.drop(v)
		return false
	}
	if before == 0 {
		select {
		case n.out <- v:
			n.move(working, working, 0, 1, -bytes)
			return true
		default:
		}
	}
	n.move(working, blocked, 0, 0, before)
	select {
	case n.out <- v:
		n.move(blocked, working, 0, 1, -bytes)
		return true
	case <-until:
	case <-n.idle:
	}
	n.move(blocked, working, 0, 0, -bytes)
	n.drop(v)
	return false
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
