package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// ErrTaken says that a run has a trainer already: the acks of a second one would settle what the first one trains.
var ErrTaken = errors.New("another trainer takes patches of this run")

// roundTrip is how long everybody has to say that he is here.
const roundTrip = 500 * time.Millisecond

// Announce says who is connected, to whoever asks, until Close; held is how many messages are in hand. A trainer claims the
// run by it: where there is one already, the later one gets ErrTaken.
func (q *Queue) Announce(ctx context.Context, held func() int) error {
	me := State{Role: q.Role, Who: self(), ID: nuid.Next(), Since: time.Now().UTC()}
	_, err := q.nc.Subscribe(q.names.here(), func(m *nats.Msg) {
		now := me
		now.Waiting = q.Waiting()
		if held != nil {
			now.Held = held()
		}
		_ = m.Respond(now.encode()) // whoever asked may be gone
	})
	if err != nil || q.Role != Trainer {
		return err
	}
	var others []State
	err = q.patiently(ctx, func() error {
		others, err = q.Here(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range others {
		if s.Role == Trainer && s.ID != me.ID && (s.Since.Before(me.Since) || s.Since.Equal(me.Since) && s.ID < me.ID) {
			return fmt.Errorf("%w: %s, since %s; stop it, or give this run another queue.name", ErrTaken, s.Who, s.Since.Format(time.DateTime))
		}
	}
	return nil
}

// Here is who is connected and answers, by role and name.
func (q *Queue) Here(ctx context.Context) ([]State, error) {
	ctx, cancel := q.bind(ctx)
	defer cancel()
	inbox := q.nc.NewInbox()
	sub, err := q.nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := q.nc.PublishRequest(q.names.here(), inbox, nil); err != nil {
		return nil, err
	}
	var list []State
	ctx, over := context.WithTimeout(ctx, roundTrip)
	defer over()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			if cause := context.Cause(q.ctx); cause != nil {
				return nil, cause
			}
			break // time is over, or nobody is there
		}
		var s State
		if m.Header.Get("Status") == "503" {
			break
		}
		if json.Unmarshal(m.Data, &s) == nil && s.Role != "" {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b State) int { return strings.Compare(a.Role+" "+a.Who, b.Role+" "+b.Who) })
	return list, nil
}
