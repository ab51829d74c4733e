package observe

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Options are the keys of the observe block.
type Options struct {
	HTTP    string   `key:"http" default:"\"\"" example:"127.0.0.1:8080" doc:"Address at which the run can be watched: a live page, /metrics for Prometheus, /healthz and /readyz. A port alone is on this machine only; other machines see the page, pictures included, if the address is one that they reach. Empty is none."`
	Report  float64  `key:"report" default:"60" unit:"seconds" min:"1" doc:"How often report.html is written while the run goes on. It is written at the end in any case."`
	Events  bool     `key:"events" default:"true" doc:"Writes event files that TensorBoard opens: scalars, pictures, and how often each code is used."`
	Stall   float64  `key:"stall" default:"30" unit:"minutes" min:"0" doc:"After so long without anything moving, and ten times the longest such pause before, the run counts as stalled: the stage is named, and what every goroutine does is written to the run's folder. 0 is never."`
	LogSize int64    `key:"log_size" default:"64MiB" unit:"bytes" min:"64KiB" doc:"log.jsonl becomes log.jsonl.1 when it is as large, up to log.jsonl.3."`
	Webhook string   `key:"webhook" secret:"true" default:"\"\"" example:"${FLOWRUN_WEBHOOK}" doc:"URL to which JSON is posted when what on lists happens; Slack and Discord show it as it is. $NAME stands for an environment variable. It is never logged or saved."`
	Command []string `key:"command" secret:"true" default:"[]" example:"[mail, -s, flowrun, me@example.org]" doc:"Program and arguments to run when what on lists happens. It gets FLOWRUN_EVENT, FLOWRUN_DIR and FLOWRUN_TEXT in its environment and the webhook's JSON on its standard input. Like the webhook it is never logged or saved."`
	On      []string `key:"on" default:"[done, failed, diverged, stalled, paused, interrupted]" oneof:"done failed diverged stalled paused interrupted" doc:"What webhook and command are told of. paused is a disk or memory that is full."`
}

// Check finds what no single key shows.
func (o *Options) Check() error {
	var errs []error
	if _, err := o.Address(); err != nil {
		errs = append(errs, fmt.Errorf("http: %w", err))
	}
	if len(o.Command) > 0 && strings.TrimSpace(o.Command[0]) == "" {
		errs = append(errs, errors.New("command: the program's name is empty"))
	}
	if o.Webhook != "" && !strings.Contains(o.Webhook, "$") {
		if err := checkURL(o.Webhook); err != nil {
			errs = append(errs, fmt.Errorf("webhook: %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkURL says what is wrong with a webhook's URL without quoting it: it may hold a secret.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("isn't a URL (want https://host/path)")
	}
	return nil
}

// Address is where to listen; "" for nowhere. What names no host is on loopback.
func (o *Options) Address() (string, error) {
	text := o.HTTP
	if text == "" {
		return "", nil
	}
	if _, err := strconv.ParseUint(text, 10, 16); err == nil {
		text = ":" + text
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("%q isn't an address (want a port, or host:port such as 127.0.0.1:8080)", text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q: port %q (want 0 to 65535)", text, port)
	} else if port = strconv.FormatUint(n, 10); host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// StallAfter is Stall as a duration.
func (o *Options) StallAfter() time.Duration { return time.Duration(o.Stall * float64(time.Minute)) }
