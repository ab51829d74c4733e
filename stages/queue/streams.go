package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds are what a trainer needs of the streams.
type Bounds struct {
	Held  int    // patches that it may hold between two checkpoints
	Patch [3]int // voxels, x, y, z
}

// ahead is how many patches the trainer fetches ahead, and slack what else may be given out at a time.
const (
	ahead = 2
	slack = 4
)

// Least is the fewest bytes that the patches' stream must have: a quarter more than can be held and fetched ahead.
func (b Bounds) Least() int64 {
	return int64(b.Held+slack) * PatchBytes(b.Patch) / 4 * 5
}

// dedupe is how long a server remembers identities. What comes again later is told by the ledger.
const dedupe = time.Hour

// streams are the configurations asked for.
func (q *Queue) streams(b Bounds) []jetstream.StreamConfig {
	n := q.names
	list := []jetstream.StreamConfig{
		{Name: n.scanStream(), Subjects: []string{"fr." + n.run + ".scan.>"}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			Storage: jetstream.FileStorage, MaxMsgs: int64(q.o.Scans), MaxMsgSize: maxScanBytes, Duplicates: dedupe},
		{Name: n.deadStream(), Subjects: []string{n.deadSubject() + ".>"}, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			Storage: jetstream.FileStorage, MaxBytes: 64 << 20, MaxAge: 30 * 24 * time.Hour, MaxMsgSize: maxScanBytes, Duplicates: dedupe},
	}
	bytes := q.o.Bytes
	if bytes == 0 {
		bytes = b.Least()
	}
	return append(list, jetstream.StreamConfig{
		Name: n.patchStream(), Subjects: []string{"fr." + n.run + ".patch.>"}, Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
		Storage: jetstream.FileStorage, MaxBytes: bytes, MaxMsgSize: maxBody, Duplicates: dedupe})
}

func (q *Queue) prepConsumer() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{Durable: prepName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.o.ackWait(), MaxDeliver: -1, MaxAckPending: q.o.Workers}
}

func (q *Queue) trainConsumer(b Bounds) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{Durable: trainName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.o.ackWait(), MaxDeliver: -1, MaxAckPending: b.Held + slack}
}

// CheckBounds refuses a bound on bytes below what the trainer may hold: the run would stand still.
func (o *Options) CheckBounds(b Bounds) error {
	if o.Bytes > 0 && o.Bytes < b.Least() {
		return fmt.Errorf("bytes: %s is less than the %s that %d patches held between checkpoints take; raise it, or lower subscribe.held or checkpoint.every",
			size(o.Bytes), size(b.Least()), b.Held)
	}
	return nil
}

// Ensure makes the run's streams and consumers where they aren't there yet, and checks that they are what the run needs. Only
// what is missing or differs is written, so a trainer whose account may not create streams finds those that Ensure made
// for an account that may. An admin writes all.
func (q *Queue) Ensure(ctx context.Context, b Bounds) error {
	if err := q.o.CheckBounds(b); err != nil {
		return err
	}
	ctx, cancel := q.bind(ctx)
	defer cancel()
	return q.patiently(ctx, func() error { return q.ensure(ctx, b) })
}

func (q *Queue) ensure(ctx context.Context, b Bounds) error {
	list := q.streams(b)
	have, err := q.js.Stream(ctx, q.names.patchStream())
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return q.explain(ctx, "stream "+q.names.patchStream(), err)
	}
	if err != nil || q.Role == Admin || sameStream(have.CachedInfo().Config, list[len(list)-1]) != nil {
		if err := q.create(ctx, list); err != nil {
			return err
		}
	}
	want := q.trainConsumer(b)
	got, err := q.js.Consumer(ctx, q.names.patchStream(), trainName)
	if err == nil && sameConsumer(got.CachedInfo().Config, want) == nil {
		return nil
	}
	if err := q.consumer(ctx, q.names.scanStream(), q.prepConsumer()); err != nil {
		return err
	}
	return q.consumer(ctx, q.names.patchStream(), want)
}

func (q *Queue) create(ctx context.Context, list []jetstream.StreamConfig) error {
	for _, want := range list {
		s, err := q.js.CreateOrUpdateStream(ctx, want)
		if err != nil {
			return q.explain(ctx, "stream "+want.Name, err)
		}
		if err := sameStream(s.CachedInfo().Config, want); err != nil {
			return fmt.Errorf("%w: stream %s: %w (version %s)", ErrFeature, want.Name, err, q.nc.ConnectedServerVersion())
		}
	}
	if q.o.Objects == 0 {
		return nil
	}
	_, err := q.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: q.names.bucket(), MaxBytes: q.o.Objects, Storage: jetstream.FileStorage})
	if err != nil {
		return q.explain(ctx, "object store "+q.names.bucket(), err)
	}
	return nil
}

func (q *Queue) consumer(ctx context.Context, stream string, want jetstream.ConsumerConfig) error {
	c, err := q.js.CreateOrUpdateConsumer(ctx, stream, want)
	if err != nil {
		return q.explain(ctx, "consumer "+want.Durable+" of "+stream, err)
	}
	if err := sameConsumer(c.CachedInfo().Config, want); err != nil {
		return fmt.Errorf("%w: consumer %s of %s: %w (version %s)", ErrFeature, want.Durable, stream, err, q.nc.ConnectedServerVersion())
	}
	return nil
}

// sameStream compares what a server keeps with what it was asked for: old ones drop what they don't know.
func sameStream(got, want jetstream.StreamConfig) error {
	switch {
	case got.Retention != want.Retention:
		return fmt.Errorf("retention is %v (want %v)", got.Retention, want.Retention)
	case got.Discard != want.Discard:
		return fmt.Errorf("discard is %v (want %v)", got.Discard, want.Discard)
	case got.Storage != want.Storage:
		return fmt.Errorf("storage is %v (want %v)", got.Storage, want.Storage)
	case want.MaxMsgs > 0 && got.MaxMsgs != want.MaxMsgs:
		return fmt.Errorf("max_msgs is %d (want %d)", got.MaxMsgs, want.MaxMsgs)
	case want.MaxBytes > 0 && got.MaxBytes != want.MaxBytes:
		return fmt.Errorf("max_bytes is %d (want %d)", got.MaxBytes, want.MaxBytes)
	case got.MaxMsgSize != want.MaxMsgSize:
		return fmt.Errorf("max_msg_size is %d (want %d)", got.MaxMsgSize, want.MaxMsgSize)
	case got.Duplicates != want.Duplicates:
		return fmt.Errorf("duplicate_window is %v (want %v)", got.Duplicates, want.Duplicates)
	}
	return nil
}

func sameConsumer(got, want jetstream.ConsumerConfig) error {
	switch {
	case got.AckPolicy != want.AckPolicy:
		return fmt.Errorf("ack_policy is %v (want %v)", got.AckPolicy, want.AckPolicy)
	case got.MaxDeliver != want.MaxDeliver:
		return fmt.Errorf("max_deliver is %d (want %d)", got.MaxDeliver, want.MaxDeliver)
	case got.MaxAckPending != want.MaxAckPending:
		return fmt.Errorf("max_ack_pending is %d (want %d)", got.MaxAckPending, want.MaxAckPending)
	case got.AckWait != want.AckWait:
		return fmt.Errorf("ack_wait is %v (want %v)", got.AckWait, want.AckWait)
	}
	return nil
}

// Codes of errors of JetStream's API.
const (
	codeInsufficient    = 10023
	codeMemoryExceeded  = 10028
	codeStorageExceeded = 10047
	codeStoreFailed     = 10077 // full, or too large: only the text tells
	codeTooMany         = 10167
)

// explain says what to do about an error of the API.
func (q *Queue) explain(ctx context.Context, what string, err error) error {
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		return cause // a refusal, which the API shows as a timeout
	}
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: JetStream isn't enabled for this account (version %s): %w", ErrFeature, q.nc.ConnectedServerVersion(), err)
	case errors.As(err, &api) && (api.ErrorCode == codeStorageExceeded || api.ErrorCode == codeInsufficient):
		return fmt.Errorf("%s: the server's store has no room for it: lower queue.bytes, subscribe.held or checkpoint.every, or give the server more (max_file, server.disk): %w", what, err)
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrBucketNotFound):
		return fmt.Errorf("%s: isn't on the server: has the trainer been started, or flowrun queue create run, and is the run called %s?", what, q.names.run)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: the server doesn't answer: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Delete removes a run's streams and what waits in them.
func (q *Queue) Delete(ctx context.Context) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	for _, name := range []string{q.names.scanStream(), q.names.patchStream(), q.names.deadStream(), "OBJ_" + q.names.bucket()} {
		if err := q.js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return q.explain(ctx, "stream "+name, err)
		}
	}
	return nil
}
