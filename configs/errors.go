package configs

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// An Error is one problem with a configuration, where it is and which key it is about.
type Error struct {
	File     string // as given to Load; "" from Decode
	Line     int    // from 1; 0 where the problem isn't one line's
	Override string // the key=value word that caused it; File and Line don't matter then
	Key      string // dotted, "" where the problem isn't one key's
	Reason   string // what is wrong, and what to do
}

// userinfo is what a URL shouldn't hold, and no error repeats.
var userinfo = regexp.MustCompile(`//[^/@\s]*@`)

// Error is one line: train.yaml:12: train.lrr: unknown key; did you mean "lr"?
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Override != "":
		fmt.Fprintf(&b, "command line: %s: ", shorten(userinfo.ReplaceAllString(e.Override, "//…@")))
		if name, _, _ := strings.Cut(e.Override, "="); name == e.Key {
			b.WriteString(e.Reason)
			return b.String()
		}
	case e.File != "" && e.Line > 0:
		fmt.Fprintf(&b, "%s:%d: ", e.File, e.Line)
	case e.File != "":
		fmt.Fprintf(&b, "%s: ", e.File)
	case e.Line > 0:
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}

// Errors are all problems of one configuration: the file's by line, then the command line's. Never empty when
// returned as an error.
type Errors []*Error

// Error is one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find an *Error.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b *Error) int {
		if c := cmp.Compare(min(len(a.Override), 1), min(len(b.Override), 1)); c != 0 {
			return c
		}
		return cmp.Compare(a.Line, b.Line)
	})
}
