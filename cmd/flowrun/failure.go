package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/flows"
)

// usageError is a mistake in the words of the command line.
type usageError struct {
	err  error
	hint string // a command that says more, or ""
}

func (e *usageError) Error() string {
	if e.hint == "" {
		return e.err.Error()
	}
	return e.err.Error() + "; see " + e.hint
}

func (e *usageError) Unwrap() error { return e.err }

// usagef returns a usageError of verb ("" for the command itself).
func usagef(verb, format string, args ...any) error {
	hint := "flowrun --help"
	if verb != "" {
		hint = "flowrun " + verb + " --help"
	}
	return &usageError{fmt.Errorf(format, args...), hint}
}

// unread reports whether the command failed only because nobody reads its output any more, as in flowrun help | head.
func unread(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && path.Path == "/dev/stdout" && errors.Is(err, syscall.EPIPE)
}

// exitCode is that of flows, and 2 for wrong words.
func exitCode(err error) int {
	if unread(err) {
		return flows.ExitDone
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return flows.ExitUsage
	}
	return flows.ExitCode(err)
}

// explain says why the command failed. The last line is the whole of it: flowrun: what, where, what to do.
func explain(w io.Writer, err error) {
	if err == nil || unread(err) {
		return
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	last := strings.Join(lines, "; ")
	var problems configs.Errors
	if errors.As(err, &problems) && len(problems) > 1 {
		for _, line := range lines {
			_, _ = fmt.Fprintln(w, line) // nowhere else to say it
		}
		last = fmt.Sprintf("%s: %d problems, listed above; flowrun help STAGE documents the keys", problems[0].File, len(problems))
	}
	if errors.Is(err, syscall.EMFILE) {
		last += "; raise the limit on open files (ulimit -n)"
	}
	_, _ = fmt.Fprintln(w, "flowrun: "+last)
}
