package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Kinds of dead letters.
const (
	deadScan  = "scan"
	deadPatch = "patch"
)

// Dead is a dead letter: a message that couldn't be used. Its samples aren't in it.
type Dead struct {
	Seq    uint64    `json:"-"` // by which it is asked for
	Time   time.Time `json:"-"`
	Kind   string    `json:"kind"`
	ID     string    `json:"id"`
	Once   string    `json:"once"`
	Reason string    `json:"reason"`
	Source *Scan     `json:"source,omitempty"` // what is asked for again; nil where the message didn't say
}

// bury stores a dead letter.
func (q *Queue) bury(ctx context.Context, d Dead) error {
	d.Reason = oneLine(d.Reason)
	m := nats.NewMsg(q.names.deadSubject() + "." + d.Kind)
	var err error
	if m.Data, err = json.Marshal(d); err != nil {
		return err
	}
	m.Header.Set(nats.MsgIdHdr, "dead/"+d.Once)
	m.Header.Set(idHeader, d.ID)
	m.Header.Set(reasonHeader, d.Reason)
	q.log(Event{true, "queue: dead letter: " + d.ID + ": " + d.Reason})
	return q.publish(ctx, m)
}

// Dead lists the dead letters, oldest first.
func (q *Queue) Dead(ctx context.Context) ([]Dead, error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s, err := q.js.Stream(ctx, q.names.deadStream())
	if err != nil {
		return nil, q.explain(ctx, "stream "+q.names.deadStream(), err)
	}
	var list []Dead
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		d, err := q.letter(ctx, s, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, q.explain(ctx, "dead letters", err)
		}
		list = append(list, *d)
	}
	return list, nil
}

func (q *Queue) letter(ctx context.Context, s jetstream.Stream, seq uint64) (*Dead, error) {
	m, err := s.GetMsg(ctx, seq)
	if err != nil {
		return nil, err
	}
	d := &Dead{Kind: "?", ID: m.Header.Get(idHeader), Reason: m.Header.Get(reasonHeader)}
	_ = json.Unmarshal(m.Data, d) // what can't be read is shown as its headers
	d.Seq, d.Time = seq, m.Time
	return d, nil
}

// Requeue asks for the scan of a dead letter again, and removes the letter. Patches of it that were trained aren't trained
// twice.
func (q *Queue) Requeue(ctx context.Context, seq uint64) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s, err := q.js.Stream(ctx, q.names.deadStream())
	if err != nil {
		return q.explain(ctx, "stream "+q.names.deadStream(), err)
	}
	d, err := q.letter(ctx, s, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("dead letter %d: there is none", seq)
	}
	if err != nil {
		return q.explain(ctx, fmt.Sprintf("dead letter %d", seq), err)
	}
	if d.Source == nil {
		return fmt.Errorf("dead letter %d: doesn't say which scan it was; publish that again", seq)
	}
	again := *d.Source
	again.Attempt++
	if err := q.PublishScan(ctx, &again); err != nil {
		return err
	}
	return s.DeleteMsg(ctx, seq)
}

// Discard removes a dead letter.
func (q *Queue) Discard(ctx context.Context, seq uint64) error {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	s, err := q.js.Stream(ctx, q.names.deadStream())
	if err == nil {
		err = s.DeleteMsg(ctx, seq)
	}
	if err != nil {
		return q.explain(ctx, fmt.Sprintf("dead letter %d", seq), err)
	}
	return nil
}
