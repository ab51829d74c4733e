package main

import (
	"io"
	"os"
	"syscall"
	"testing"
)

// The first signal closes soft and leaves the context alone; the second cancels it.
func TestStops(t *testing.T) {
	ctx, soft, begun, release := stops(t.Context(), io.Discard)
	begun()
	defer release()
	signal := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	<-soft
	if ctx.Err() != nil {
		t.Error("one signal cancelled the run")
	}
	signal()
	<-ctx.Done()
}
