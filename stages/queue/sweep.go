package queue

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// sweepEvery is the least time between two sweeps by a trainer.
const sweepEvery = 5 * time.Second

// Sweep removes patches that the stream still stores although they were acknowledged: they lie at or below the consumer's
// ack floor, so it will never give them out again. A server that was killed can leave such, and they take room for good. It
// returns how many there were.
func (q *Queue) Sweep(ctx context.Context) (int, error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s, err := q.js.Stream(ctx, q.names.patchStream())
	if err != nil {
		return 0, q.explain(ctx, "sweep", err)
	}
	c, err := q.js.Consumer(ctx, q.names.patchStream(), trainName)
	if err != nil {
		return 0, q.explain(ctx, "sweep", err)
	}
	floor := c.CachedInfo().AckFloor.Stream
	info, err := s.Info(ctx) // after the floor: what was stored meanwhile lies above it
	if err != nil {
		return 0, q.explain(ctx, "sweep", err)
	}
	if info.State.Msgs == 0 || info.State.FirstSeq > floor {
		return 0, nil
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(floor+1)); err != nil { // keeps floor+1 and what is above
		return 0, q.explain(ctx, "sweep", err)
	}
	after, err := s.Info(ctx)
	if err != nil {
		return 0, q.explain(ctx, "sweep", err)
	}
	return int(max(info.State.Msgs, after.State.Msgs) - after.State.Msgs), nil
}
