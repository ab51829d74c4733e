package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PublishScan asks for a scan's patches, and returns when the server has stored that. It waits while as many scans wait as
// may.
func (q *Queue) PublishScan(ctx context.Context, s *Scan) error {
	m, err := s.encode(q.names)
	if err != nil {
		return err
	}
	return q.publish(ctx, m)
}

// PublishPatch sends a patch, and returns when the server has stored it. It waits while the stream is full: this is how a
// slow trainer stops its workers. A patch that was sent before is stored once.
func (q *Queue) PublishPatch(ctx context.Context, p *Patch) error {
	m, err := p.encode(q.names)
	if err != nil {
		return err
	}
	return q.publish(ctx, m)
}

// Waits of publish: between tries, for the server's answer, and between words about it.
const (
	firstWait   = 20 * time.Millisecond
	longestWait = 2 * time.Second
	answerWait  = 10 * time.Second
	firstWords  = 5 * time.Second
	wordsEvery  = 30 * time.Second
	slowest     = 256 << 10 // bytes a second that a link has at least
)

// publish sends a message until the server says that it is stored, under one identity.
func (q *Queue) publish(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	wait, said := firstWait, time.Now().Add(firstWords-wordsEvery)
	for {
		err := q.try(ctx, m)
		switch {
		case err == nil:
			q.setWaiting("")
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !retryable(err):
			return fmt.Errorf("%s: %w", m.Header.Get(idHeader), err)
		}
		why := reasonOf(err)
		q.setWaiting(why)
		if time.Since(said) > wordsEvery {
			q.log(Event{true, "queue: waiting: " + why})
			said = time.Now()
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, longestWait)
	}
}

// try sends a message once. It doesn't wait for an answer over a connection that is gone.
func (q *Queue) try(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait+time.Duration(m.Size())*time.Second/slowest)
	defer cancel()
	stop := context.AfterFunc(q.link(), cancel)
	defer stop()
	_, err := q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	return err
}

// retryable says whether an error of publishing is an outage, or a stream that is full.
func retryable(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		switch int(api.ErrorCode) {
		case codeStoreFailed: // one code for three causes
			return full(api)
		case codeInsufficient, codeStorageExceeded, codeMemoryExceeded, codeTooMany:
			return true
		}
		return api.Code >= 500
	}
	for _, e := range []error{nats.ErrMaxPayload, nats.ErrBadSubject, nats.ErrHeadersNotSupported, nats.ErrConnectionClosed,
		nats.ErrConnectionDraining, jetstream.ErrInvalidJSAck} {
		if errors.Is(err, e) {
			return false
		}
	}
	return !refusal(err)
}

func full(api *jetstream.APIError) bool {
	return api.Description == "maximum messages exceeded" || api.Description == "maximum bytes exceeded" || api.Description == "maximum messages per subject exceeded"
}

// reasonOf says in plain words why a message waits.
func reasonOf(err error) string {
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && int(api.ErrorCode) == codeStoreFailed:
		return "the queue is full; what takes from it is slower"
	case errors.As(err, &api):
		return "the server has no room: " + api.Description
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return "the streams aren't there yet: start the trainer, or flowrun queue create"
	case errors.Is(err, context.DeadlineExceeded):
		return "the server doesn't answer (is its disk full?)"
	case errors.Is(err, context.Canceled), errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrDisconnected):
		return "the connection is gone"
	}
	return redact(err.Error())
}
