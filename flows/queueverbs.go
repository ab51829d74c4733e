package flows

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/flowrun/flowrun/configs"
	"github.com/flowrun/flowrun/stages/queue"
)

// QueueAt says which run's queue a verb is about.
type QueueAt struct {
	Where string   // a file with a block queue, a server's URL or a context of the nats tool
	Name  string   // queue.name, where Where isn't a file
	Words []string // key=value, for a file
}

// options are those of the queue, as a client other than the run's own process reaches it.
func (a QueueAt) options() (queue.Options, *Job, error) {
	var o queue.Options
	if !strings.HasSuffix(a.Where, ".yaml") && !strings.HasSuffix(a.Where, ".yml") {
		if err := configs.SetDefaults(&o); err != nil {
			return o, nil, err
		}
		o.Name = a.Name
		if strings.Contains(a.Where, "://") {
			o.URL = a.Where
		} else {
			o.Context = a.Where
		}
		if len(a.Words) > 0 {
			return o, nil, configErrorf("%s: key=value words go with a .yaml file", a.Words[0])
		}
		if err := o.Check(); err != nil {
			return o, nil, configErrorf("--queue: %w", err)
		}
		if o.Name == "" {
			return o, nil, configErrorf("which run's queue? name it with --run, as queue.name does in its file")
		}
		return o, nil, nil
	}
	words := a.Words
	elsewhere := func(word string) bool {
		key, value, _ := strings.Cut(word, "=")
		return value != "" && (key == "queue.url" || key == "queue.context")
	}
	if slices.ContainsFunc(words, elsewhere) { // and not on the server that the file's run has inside
		words = slices.Concat([]string{"queue.server={}"}, words)
	}
	j, err := Load(a.Where, nil, words)
	if err != nil {
		return o, nil, err
	}
	o = j.queue
	switch {
	case a.Name != "":
		o.Name = a.Name
	case o.Name == "":
		return o, nil, configErrorf("%s: queue.name: is empty: this file has no queue", a.Where)
	}
	if o.External() {
		return o, j, nil
	}
	if o.Server.Listen == "" {
		return o, nil, configErrorf("%s: its NATS server is inside the run and can't be reached: set queue.server.listen, or queue.url to a server of its own", a.Where)
	}
	o.URL, o.Server = "nats://"+o.Server.Listen, queue.Server{}
	return o, j, nil
}

// open connects as somebody who looks after the queue.
func (a QueueAt) open(ctx context.Context, w io.Writer) (*queue.Queue, *Job, error) {
	o, j, err := a.options()
	if err != nil {
		return nil, nil, err
	}
	q, err := queue.Open(ctx, queue.Config{Options: o, Wait: time.Second, Log: func(e queue.Event) {
		_, _ = fmt.Fprintln(w, e.Text) // beside the result
	}}, queue.Admin)
	if err != nil {
		return nil, nil, queueError(err)
	}
	return q, j, nil
}

// QueueStatus says what waits in a run's queue, who is connected, and how fast it goes.
func QueueStatus(ctx context.Context, a QueueAt, ui UI) error {
	q, _, err := a.open(ctx, ui.Err)
	if err != nil {
		return err
	}
	defer q.Close()
	before, err := q.Status(ctx)
	if err != nil {
		return queueError(err)
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	now, err := q.Status(ctx)
	if err != nil {
		return queueError(err)
	}
	return now.Write(ui.Out, before)
}

// QueueCreate makes the streams of a trainer's file, for accounts whose trainer may not.
func QueueCreate(ctx context.Context, a QueueAt, ui UI) error {
	q, j, err := a.open(ctx, ui.Err)
	if err != nil {
		return err
	}
	defer q.Close()
	if j == nil || j.ends().learn == nil {
		return configErrorf("%s: want the trainer's file: how large the streams are follows from its patches and checkpoints", a.Where)
	}
	if err := q.Ensure(ctx, j.bounds()); err != nil {
		return queueError(err)
	}
	_, err = fmt.Fprintf(ui.Out, "the queue %s is ready on %s\n", q.Name(), q.Server())
	return err
}

// QueueDelete removes a run's streams and all that waits in them.
func QueueDelete(ctx context.Context, a QueueAt, ui UI) error {
	q, _, err := a.open(ctx, ui.Err)
	if err != nil {
		return err
	}
	defer q.Close()
	here, err := q.Here(ctx)
	if err != nil {
		return queueError(err)
	}
	if len(here) > 0 {
		return configErrorf("the queue %s is in use: %s %s is connected; stop it first", q.Name(), here[0].Role, here[0].Who)
	}
	if err := q.Delete(ctx); err != nil {
		return queueError(err)
	}
	_, err = fmt.Fprintf(ui.Out, "the queue %s is gone\n", q.Name())
	return err
}

// DeadOptions say what is to be done with dead letters, by their numbers; nothing lists them.
type DeadOptions struct {
	Requeue, Drop []uint64
	All           bool // requeue all that can be
}

// DeadLetters lists a run's dead letters, has them tried again, or drops them.
func DeadLetters(ctx context.Context, a QueueAt, o DeadOptions, ui UI) error {
	q, _, err := a.open(ctx, ui.Err)
	if err != nil {
		return err
	}
	defer q.Close()
	letters, err := q.Dead(ctx)
	if err != nil {
		return queueError(err)
	}
	if o.All {
		asked := map[string]bool{}
		for _, d := range letters {
			if d.Source == nil {
				continue
			}
			at := fmt.Sprint(d.Source.Epoch, " ", d.Source.Name)
			if asked[at] { // one attempt makes all its patches
				o.Drop = append(o.Drop, d.Seq)
			} else {
				o.Requeue = append(o.Requeue, d.Seq)
			}
			asked[at] = true
		}
	}
	for _, seq := range o.Requeue {
		if err := q.Requeue(ctx, seq); err != nil {
			return queueError(err)
		}
		if _, err := fmt.Fprintf(ui.Out, "%d is asked for again\n", seq); err != nil {
			return err
		}
	}
	for _, seq := range o.Drop {
		if err := q.Discard(ctx, seq); err != nil {
			return queueError(err)
		}
	}
	if len(o.Requeue)+len(o.Drop) > 0 || o.All {
		return nil
	}
	return listDead(ui.Out, letters)
}

func listDead(w io.Writer, letters []queue.Dead) error {
	if len(letters) == 0 {
		_, err := fmt.Fprintln(w, "no dead letters")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NUMBER\tWHEN\tWHAT\tSCAN\tREASON") // Flush tells
	for _, d := range letters {
		scan := "?"
		if d.Source != nil {
			scan = fmt.Sprintf("%s, epoch %d", d.Source.Name, d.Source.Epoch)
		}
		_, _ = fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", d.Seq, d.Time.Local().Format(time.DateTime), d.Kind, scan, d.Reason)
	}
	return t.Flush()
}

// PublishOptions say what flowrun publish publishes, and how.
type PublishOptions struct {
	Scans  []string
	Watch  string
	Epochs int
	Bytes  bool
	Dir    string // what was published is noted here; "": runs/publish-NAME
}

// Publish asks a run's workers for the patches of scans.
func Publish(ctx context.Context, soft <-chan struct{}, a QueueAt, o PublishOptions, ui UI) error {
	if err := (&queue.ListOptions{From: o.Scans, Watch: o.Watch}).Check(); err != nil {
		return configErrorf("publish: %w", err)
	}
	to, _, err := a.options()
	if err != nil {
		return err
	}
	if o.Dir == "" {
		o.Dir = filepath.Join("runs", "publish-"+to.Name)
	}
	from, err := json.Marshal(slices.Clip(append([]string{}, o.Scans...)))
	if err != nil {
		return err
	}
	dir, err := json.Marshal(o.Dir)
	if err != nil {
		return err
	}
	watch, err := json.Marshal(o.Watch)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("run: {dir: %s}\nqueue: {name: %s}\nflow:\n  - scans: {from: %s, watch: %s, epochs: %d}\n  - publish: {}\n", dir, to.Name, from, watch, o.Epochs)
	j, err := Load("publish", []byte(text), nil)
	if err != nil {
		return err
	}
	j.queue = to
	j.pieces[1].options.(*queue.PublishOptions).Bytes = o.Bytes
	j.again = append([]string{"flowrun", "publish", "--queue", a.Where}, o.Scans...)
	if _, err := os.Stat(o.Dir); err == nil {
		_, _ = fmt.Fprintf(ui.Err, "flowrun: what %s says was published isn't published again\n", filepath.Join(o.Dir, "published.jsonl")) // only told
	}
	return j.Run(ctx, soft, ui)
}
