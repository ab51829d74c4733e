package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Notice is what webhooks and commands are told.
type Notice struct {
	Event      string             `json:"event"`   // one of Options.On
	Text       string             `json:"text"`    // a sentence; Slack and Mattermost show it
	Content    string             `json:"content"` // the same; Discord shows it
	Run        string             `json:"run"`     // its folder
	Host       string             `json:"host"`
	Time       time.Time          `json:"time"`
	Step       int                `json:"step,omitempty"`
	Total      int                `json:"total,omitempty"`
	Exit       *int               `json:"exit,omitempty"` // the exit code, of a run that has ended
	Checkpoint string             `json:"checkpoint,omitempty"`
	Report     string             `json:"report,omitempty"`
	Command    string             `json:"command,omitempty"` // goes on with the run
	Metrics    map[string]float64 `json:"metrics,omitempty"` // of the newest validation
}

// Hooks tell people and programs elsewhere of a run.
type Hooks struct {
	webhook string
	command []string
	on      []string
	client  *http.Client
	wait    time.Duration // before a second try, twice that before a third
}

const (
	hookTimeout = 10 * time.Second // of a try, and of the command
	tries       = 3
	shown       = 500 // bytes of what a command says that failed
)

// NewHooks are those of the options. Environment variables in the webhook are put in.
func NewHooks(o Options, getenv func(string) string) (*Hooks, error) {
	h := &Hooks{command: o.Command, on: o.On, wait: time.Second}
	h.client = &http.Client{Timeout: hookTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // what is posted goes where the user said
	}}
	if o.Webhook == "" {
		return h, nil
	}
	var missing []string
	h.webhook = os.Expand(o.Webhook, func(name string) string {
		value := getenv(name)
		if value == "" {
			missing = append(missing, "$"+name)
		}
		return value
	})
	if len(missing) > 0 {
		return nil, fmt.Errorf("webhook: %s isn't set in the environment", strings.Join(missing, ", "))
	}
	if err := checkURL(h.webhook); err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	return h, nil
}

// Wants says whether anybody is to be told of an event.
func (h *Hooks) Wants(event string) bool {
	return (h.webhook != "" || len(h.command) > 0) && slices.Contains(h.on, event)
}

// Tell tells of n, if anybody wants it, and waits until they are told: half a minute at most. Its errors don't say the
// webhook's address.
func (h *Hooks) Tell(ctx context.Context, n Notice) error {
	if !h.Wants(n.Event) {
		return nil
	}
	n.Content = n.Text
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	var told []error
	if h.webhook != "" {
		if err := h.post(ctx, body); err != nil {
			told = append(told, fmt.Errorf("webhook: %w", err))
		}
	}
	if len(h.command) > 0 {
		if err := h.run(ctx, n, body); err != nil {
			told = append(told, fmt.Errorf("command %s: %w", h.command[0], err))
		}
	}
	return errors.Join(told...)
}

// post posts body, and tries again where that may help.
func (h *Hooks) post(ctx context.Context, body []byte) error {
	for try := 1; ; try++ {
		again, err := h.try(ctx, body)
		if err == nil || !again || try == tries {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * h.wait):
		case <-ctx.Done():
			return err
		}
	}
}

func (h *Hooks) try(ctx context.Context, body []byte) (again bool, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, h.webhook, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("its URL can't be used")
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("User-Agent", "flowrun")
	answer, err := h.client.Do(q)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL
		}
		return ctx.Err() == nil, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<16))
	_ = answer.Body.Close()
	switch c := answer.StatusCode; {
	case c < 300:
		return false, nil
	default:
		return c >= 500 || c == http.StatusTooManyRequests || c == http.StatusRequestTimeout, fmt.Errorf("its server answers %s", answer.Status)
	}
}

// run runs the command with body on its standard input.
func (h *Hooks) run(ctx context.Context, n Notice, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, h.command[0], h.command[1:]...)
	c.Stdin = bytes.NewReader(append(body, '\n'))
	c.Env = append(os.Environ(), "FLOWRUN_EVENT="+n.Event, "FLOWRUN_DIR="+n.Run, "FLOWRUN_TEXT="+strings.ReplaceAll(n.Text, "\x00", ""))
	c.WaitDelay = time.Second
	var said tail
	c.Stdout, c.Stderr = &said, &said
	err := c.Run()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("took longer than %v", hookTimeout)
	}
	if err != nil && len(said) > 0 {
		text := h.conceal(string(said), os.Getenv)
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(strings.ToValidUTF8(text[max(0, len(text)-shown):], "")))
	}
	return err
}

// conceal takes what may be a secret out of what the command said: its arguments, parts of them that look like one, and the
// variables of the environment that they name.
func (h *Hooks) conceal(text string, getenv func(string) string) string {
	const short = 4 // characters up to which nothing is a secret
	hidden := []string{h.webhook}
	for _, arg := range h.command[1:] {
		hidden = append(hidden, arg)
		for _, part := range strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(" \t\n\"'=,;()", r) }) {
			if strings.ContainsAny(part, "0123456789") || strings.Contains(part, "://") {
				hidden = append(hidden, part)
			}
		}
		os.Expand(arg, func(name string) string {
			if !slices.Contains([]string{"FLOWRUN_EVENT", "FLOWRUN_DIR", "FLOWRUN_TEXT"}, name) {
				hidden = append(hidden, getenv(name))
			}
			return ""
		})
	}
	slices.SortFunc(hidden, func(a, b string) int { return len(b) - len(a) }) // the whole before its parts
	for _, s := range hidden {
		if len(s) > short {
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	return text
}

// tail keeps the end of what is written to it: more than is shown, so that no secret is cut before it is found.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	if over := len(*t) - 16<<10; over > 0 {
		*t = append((*t)[:0], (*t)[over:]...)
	}
	return len(b), nil
}
