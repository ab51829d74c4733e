package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/flowrun/flowrun/flows"
)

// patience is how long a run that hasn't begun, and so has nothing to save, may take to end once it was told to: until then it looks
// for scans, which may lie on a server that is away.
const patience = 5 * time.Second

// hardStop is how long a run may take to end once it was told to end at once. An optimiser step that takes longer is left
// where it is.
const hardStop = time.Second

// stopSignals are those that end a run. SIGHUP, a terminal that closes, ends it like Ctrl-C, unless the parent told this
// process to ignore it (nohup).
func stopSignals() []os.Signal {
	on := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		on = append(on, syscall.SIGHUP)
	}
	return on
}

// stops turns signals into a run's two stops: soft is closed by the first, the context is cancelled by the second. A run
// that doesn't end then is left behind with the exit code of an interruption; its last checkpoint is whole, as always. Until begun has
// been called the first will do.
func stops(parent context.Context, stderr io.Writer) (ctx context.Context, soft <-chan struct{}, begun, release func()) {
	ctx, cancel := context.WithCancel(parent)
	signals, stop, done, runs := make(chan os.Signal, 4), make(chan struct{}), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, stopSignals()...)
	go func() {
		select {
		case <-signals:
		case <-done:
			return
		}
		close(stop)
		idle := time.NewTimer(patience)
		for began, told := runs, false; !told; {
			select {
			case <-signals:
				told = true
			case <-idle.C:
				told = true
			case <-began:
				idle.Stop()
				began = nil
			case <-done:
				return
			}
		}
		cancel()
		abandon := time.NewTimer(hardStop)
		select {
		case <-signals:
		case <-abandon.C:
		case <-done:
			return
		}
		_, _ = fmt.Fprintln(stderr, "flowrun: stopped at once; the same command goes on, a training run from its last checkpoint")
		os.Exit(flows.ExitInterrupted)
	}()
	return ctx, stop, sync.OnceFunc(func() { close(runs) }), func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// cancelled is for verbs that have nothing to save: the first signal cancels.
func cancelled(parent context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(parent, stopSignals()...)
}
