// Package pipe is the graph runtime: it puts types, errors, an end and counters on go-streams.
//
// A graph is wired from a source through operators into a sink, runs from the moment it is wired, and is joined by
// Wait:
//
//	g := pipe.New(ctx)
//	scans := pipe.From(g, "list", list)                 // func(ctx, emit) error
//	volumes := pipe.Map(scans, "read", 2, read)         // two at a time, order kept
//	patches := pipe.Expand(volumes, "tile", tiles)      // a sequence for each volume
//	shuffled := pipe.Transform(patches, "shuffle", mix) // a function from sequence to sequence
//	pipe.Into(shuffled, "print", print)
//	err := g.Wait()
//
// Edges have no buffers: an operator holds what its contract says and the rest waits upstream. Every operator is a
// go-streams Source, Flow or Sink; Through admits any other.
//
// # How a graph ends
//
// At the end of data: sources return, each operator flushes and closes its output.
//
// By a soft stop (Stop) or because a Transform has all it wants (Done): sources end as if the data had, without an error;
// what is inside flows on, as far as there is a stage that takes it. Only
// Stop closes Stopping, by which a stage tells an interruption from an end.
//
// By a hard stop: the parent context is cancelled, or a stage returns an error or panics. The first of these is what
// Wait returns. Every operator then stops sending, drains its input until that closes, and releases what it drops. An
// operator's input ends early in this case: a function that acts on the end of its input must look at its ctx first.
//
// Wait returns when every goroutine of the graph has ended. A callback that ignores its ctx holds Wait up.
//
// # Who owns an element
//
// A callback owns the element that it is given, whether it succeeds, fails or panics: it passes it on or releases it. An
// element that is given to the graph (emitted, returned, yielded) is the graph's, also when that fails. The value beside
// a non-nil error is ignored. The graph releases, once, whatever it drops that has Release, slices of such
// included.
//
// # Reading order
//
// graph.go (how it starts and ends), node.go (what every operator is), operators.go, element.go, budget.go (memory
// that sources wait for), stat.go (what each stage has done, and what it owes).
package pipe
