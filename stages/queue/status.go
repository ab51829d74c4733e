package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Status is what a run's streams hold now.
type Status struct {
	Run     string
	Server  string
	Taken   time.Time
	Scans   Stream
	Patches Stream
	Dead    Stream
	Here    []State
}

// Stream is the state of one stream and its consumer.
type Stream struct {
	Messages, Bytes       uint64
	MaxMessages, MaxBytes int64  // 0: no bound
	Last                  uint64 // messages that were ever stored
	Given                 int    // out, and not acknowledged
	MaxGiven              int
	Waiting               uint64 // not given out
	Settled               uint64 // acknowledged, or given up, without a gap
}

// Status asks the server, and everybody who is connected.
func (q *Queue) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s := &Status{Run: q.names.run, Server: q.Server(), Taken: time.Now()}
	for _, one := range []struct {
		to             *Stream
		stream, taking string
	}{{&s.Scans, q.names.scanStream(), prepName}, {&s.Patches, q.names.patchStream(), trainName}, {&s.Dead, q.names.deadStream(), ""}} {
		if err := q.look(ctx, one.to, one.stream, one.taking); err != nil {
			return nil, q.explain(ctx, "stream "+one.stream, err)
		}
	}
	var err error
	s.Here, err = q.Here(ctx)
	return s, err
}

// Patches is the state of the patches alone: a trainer may ask for no more.
func (q *Queue) Patches(ctx context.Context) (Stream, error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	var s Stream
	if err := q.look(ctx, &s, q.names.patchStream(), trainName); err != nil {
		return Stream{}, q.explain(ctx, "stream "+q.names.patchStream(), err)
	}
	return s, nil
}

func (q *Queue) look(ctx context.Context, to *Stream, stream, consumer string) error {
	s, err := q.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	to.Messages, to.Bytes, to.Last = info.State.Msgs, info.State.Bytes, info.State.LastSeq
	to.MaxMessages, to.MaxBytes = max(0, info.Config.MaxMsgs), max(0, info.Config.MaxBytes)
	if consumer == "" {
		return nil
	}
	c, err := q.js.Consumer(ctx, stream, consumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	now := c.CachedInfo()
	to.Given, to.MaxGiven, to.Waiting, to.Settled = now.NumAckPending, now.Config.MaxAckPending, now.NumPending, now.AckFloor.Stream
	return nil
}

// Write says it in plain words; with an earlier status the rates between the two, too.
func (s *Status) Write(w io.Writer, before *Status) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush tells
	line("queue\t%s on %s", s.Run, s.Server)
	line("scans\t%d wait for a worker, %d are being prepared (at most %d wait, %d are prepared)%s",
		s.Scans.Waiting, s.Scans.Given, s.Scans.MaxMessages, s.Scans.MaxGiven, s.rate(before, func(x *Status) *Stream { return &x.Scans }))
	line("patches\t%d wait for the trainer, %d are held by it until its next checkpoint (at most %d)%s",
		s.Patches.Waiting, s.Patches.Given, s.Patches.MaxGiven, s.rate(before, func(x *Status) *Stream { return &x.Patches }))
	full := ""
	if m := s.Patches.MaxBytes; m > 0 {
		full = fmt.Sprintf(" of %s, %.0f%% full", size(m), 100*float64(s.Patches.Bytes)/float64(m))
	}
	line("disk\t%s of patches%s", size(int64(s.Patches.Bytes)), full)
	line("dead letters\t%d%s", s.Dead.Messages, map[bool]string{true: "; flowrun dead lists them", false: ""}[s.Dead.Messages > 0])
	if len(s.Here) == 0 {
		line("connected\tnobody")
	}
	for i, h := range s.Here {
		name := ""
		if i == 0 {
			name = "connected"
		}
		waits := ""
		if h.Waiting != "" {
			waits = ", waiting: " + h.Waiting
		}
		line("%s\t%s %s since %s, %d in hand%s", name, h.Role, h.Who, h.Since.Local().Format(time.DateTime), h.Held, waits)
	}
	return t.Flush()
}

// rate is what came and what was settled between two states.
func (s *Status) rate(before *Status, of func(*Status) *Stream) string {
	if before == nil {
		return ""
	}
	passed := s.Taken.Sub(before.Taken).Seconds()
	now, then := of(s), of(before)
	if passed <= 0 || now.Last < then.Last || now.Settled < then.Settled {
		return ""
	}
	return fmt.Sprintf("; %.3g a second come, %.3g are done with", float64(now.Last-then.Last)/passed, float64(now.Settled-then.Settled)/passed)
}
