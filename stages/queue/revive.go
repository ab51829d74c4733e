package queue

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A stream whose store couldn't be written to once (the disk was full) takes nothing more until its server is started again: it
// gives no answer, also when there is room. A server of its own is started again by whoever looks after it; the one inside
// does it by itself.

// listener takes of what a server logs the writes that failed. The rest of its words are the streams' and clients' to tell.
type listener struct{ failed chan<- string }

func (l *listener) Errorf(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); strings.Contains(text, "write error") || strings.Contains(text, "no space left") {
		select {
		case l.failed <- text:
		default: // one is enough
		}
	}
}

func (l *listener) Warnf(format string, args ...any)  { l.Errorf(format, args...) }
func (l *listener) Fatalf(format string, args ...any) { l.Errorf(format, args...) }
func (l *listener) Noticef(string, ...any)            {}
func (l *listener) Debugf(string, ...any)             {}
func (l *listener) Tracef(string, ...any)             {}

// The room that a store is started again with, and how often that is looked for.
const (
	reviveRoom  = 2 * maxPayload
	reviveEvery = time.Second
)

// watch starts the server again when a write has failed and there is room, until ctx ends.
func (e *Embedded) watch(ctx context.Context) {
	for {
		select {
		case text := <-e.failed:
			e.log(Event{true, fmt.Sprintf("queue: the server inside can't write to %s: %s; make room, it goes on by itself", e.options.StoreDir, redact(text))})
		case <-ctx.Done():
			return
		}
		for said := ""; ; {
			if pause(ctx, reviveEvery) != nil {
				return
			}
			if free, ok := freeBytes(e.options.StoreDir); ok && free < reviveRoom {
				continue
			}
			err := e.restart()
			if err == nil {
				break
			}
			if err.Error() != said {
				said = err.Error()
				e.log(Event{true, "queue: " + said})
			}
		}
		e.log(Event{false, "queue: the server inside was started again"})
	}
}

func (e *Embedded) restart() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Shutdown()
	e.server.WaitForShutdown()
	select {
	case <-e.failed: // of the one that has ended
	default:
	}
	return e.start()
}
