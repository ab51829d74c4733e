// Command flowrun trains 3D VQ-GANs on CT scans: flowrun FILE.yaml [key=value …].
//
// What the verbs do is in package flows; here are words, signals and exit codes. root.go has the verbs, each of which has a file; flows.go
// holds every call into flows, signals.go what a signal asks for, failure.go the last line and the exit code, help.go the keys in
// words, complete.go what a shell is offered.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/flowrun/flowrun/flows"
)

func main() {
	// A closed pipe or terminal must not end a night's run: writes to it fail instead, and are ignored.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	explain(stderr, err)
	return exitCode(err)
}

// ui is where a verb talks to people.
func ui(out, errs io.Writer, quiet bool) flows.UI {
	return flows.UI{Out: out, Err: errs, Terminal: isTerminal(errs) && os.Getenv("TERM") != "dumb", Quiet: quiet}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
