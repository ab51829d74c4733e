package flows

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/volume"
)

// queuedFlow is a run with all ends of its queue in one process.
const queuedFlow = `
run: {dir: %s, seed: 3}
queue: {name: t, server: {disk: 512MiB}}
model: {hidden: 4, downsample: [2, 2, 2], embedding: 4, codes: 16, groups: 4}
flow:
  - scans: {from: [%s], epochs: 2}
  - publish: {}
  - subscribe: {}
  - read: {}
  - tile: {mode: grid, patch: [8, 8, 4]}
  - augment: {flip: [x], shift_hu: 20}
  - publish: {}
  - subscribe: {}
  - batch: {size: 3}
  - train: {device: cpu, epochs: 2, warmup: 2, validate: {share: 0.3, every: 1000}}
  - checkpoint: {every: 4}
`

// All roles in one process: each patch of each epoch is trained once, and the ledger of the last checkpoint is whole.
func TestAllRolesInOneProcess(t *testing.T) {
	dir, _ := scanFiles(t, [3]int{16, 16, 8}, [3]int{12, 8, 8}, [3]int{20, 8, 4})
	runDir := filepath.Join(t.TempDir(), "run")
	j := mustLoad(t, fmt.Sprintf(queuedFlow, runDir, dir))
	if err := j.Run(context.Background(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
		t.Fatal(err)
	}
	d, err := j.findScans(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	snap, err := checkpoint.Load(filepath.Join(runDir, "checkpoints", checkpoint.LastName))
	if err != nil {
		t.Fatal(err)
	}
	l, err := queue.ParseLedger([]byte(snap.Meta[ledgerKey]), "t")
	if err != nil {
		t.Fatal(err)
	}
	if want := (2*d.perEpoch() + 2) / 3; snap.Step != want {
		t.Errorf("%d steps (want %d: each patch once)", snap.Step, want)
	}
	for epoch := range 2 {
		if !l.Whole(epoch) {
			t.Errorf("epoch %d isn't whole: %s", epoch, snap.Meta[ledgerKey])
		}
	}
	// Again: everything is in the checkpoint, so there is nothing to do.
	j = mustLoad(t, fmt.Sprintf(queuedFlow, runDir, dir))
	if err := j.Run(context.Background(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
		t.Fatal(err)
	}
	// From an older checkpoint: what the newer one had was acknowledged, so it is asked for again.
	older, err := filepath.Glob(filepath.Join(runDir, "checkpoints", "step-*.safetensors"))
	if err != nil || len(older) < 2 {
		t.Fatal(older, err)
	}
	j = mustLoad(t, fmt.Sprintf(queuedFlow, runDir, dir), "run.resume="+older[len(older)-2])
	if err := j.Run(context.Background(), nil, UI{Out: io.Discard, Err: io.Discard}); err != nil {
		t.Fatal(err)
	}
	again, err := checkpoint.Load(filepath.Join(runDir, "checkpoints", checkpoint.LastName))
	if err != nil {
		t.Fatal(err)
	}
	if l, err = queue.ParseLedger([]byte(again.Meta[ledgerKey]), "t"); err != nil || again.Step != snap.Step || !l.Whole(0) || !l.Whole(1) {
		t.Errorf("%v; %d steps (want %d): %s", err, again.Step, snap.Step, again.Meta[ledgerKey])
	}
	// Its checkpoint isn't one for a run without a queue, nor the other way round.
	local := strings.ReplaceAll(fmt.Sprintf(queuedFlow, runDir, dir), "  - publish: {}\n", "")
	local = strings.ReplaceAll(local, "  - subscribe: {}\n", "")
	local = strings.ReplaceAll(strings.ReplaceAll(local, fmt.Sprintf("  - scans: {from: [%s], epochs: 2}\n", dir), ""), "- read: {}", "- read: {scans: ["+dir+"]}")
	err = mustLoad(t, local).Run(context.Background(), nil, UI{Out: io.Discard, Err: io.Discard})
	if ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "from a queue") {
		t.Errorf("%v", err)
	}
}

// Who waits for a full queue waits no longer than the trainer in its process wants patches.
func TestPublishersEndWithTheTraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wiring{g: pipe.New(t.Context())}
		ctx, release := w.unlessEnding(t.Context())
		defer release()
		if synctest.Wait(); ctx.Err() != nil || w.ending() {
			t.Error("it ends before its time")
		}
		w.g.Done()
		if synctest.Wait(); ctx.Err() == nil || !w.ending() || w.stopped() {
			t.Error("it goes on, or was stopped")
		}
	})
}

// A run over a queue that goes wrong goes back like any other, and stops in the end.
func TestQueuedRunThatDiverges(t *testing.T) {
	dir, _ := scanFiles(t, [3]int{16, 16, 8}, [3]int{12, 8, 8})
	runDir := filepath.Join(t.TempDir(), "run")
	j := mustLoad(t, fmt.Sprintf(queuedFlow, runDir, dir), "train.lr=1e9", "train.warmup=0", "train.guard.tries=2", "train.guard.lower=0.9", "checkpoint.every=1")
	err := j.Run(context.Background(), nil, UI{Out: io.Discard, Err: io.Discard})
	if ExitCode(err) != ExitDiverged || !strings.Contains(err.Error(), "going back 2 times") {
		t.Errorf("%v", err)
	}
}

// What goes over the queue trains as it would have here: the batch of a patch that was sent is that of the patch itself,
// bit by bit.
func TestPatchesOverTheQueueGiveTheSameBits(t *testing.T) {
	values := make([]int16, 10*9*5)
	for i := range values {
		values[i] = int16(i*37%2400 - 1100)
	}
	v := &volume.Volume{Scan: &volume.Scan{ID: "a"}, Epoch: 1, Dims: [3]int{10, 9, 5}, Window: [2]float64{-1000, 1000}, Slope: 0.5, Inter: 3}
	v.Own(&volume.Memory{Data: values, Dims: v.Dims}, nil)
	scratch := batch.NewScratch(1)
	n := 0
	for p, err := range tile.Tiles(v, tile.Options{Mode: tile.ModeGrid, Patch: [3]int{8, 8, 4}}, 3, [3]int{2, 2, 2}) {
		if err != nil {
			t.Fatal(err)
		}
		augment.Apply(p, augment.Options{Flip: []string{"x", "z"}, Rotate90: true, Scale: 0.1, ShiftHU: 30, NoiseHU: 20}, 3, 0)
		want, got := make([]float32, 256), make([]float32, 256)
		if err := batch.Cut(want, p, scratch); err != nil {
			t.Fatal(err)
		}
		sent, err := queue.Cut(p, "t", queue.Scan{Name: "a", Epoch: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := batch.Cut(got, sent.Element(nil), scratch); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s differs", p.Tag)
		}
		p.Release()
		n++
	}
	if n < 8 {
		t.Errorf("%d patches", n)
	}
}

func TestQueuedFlowsAreChecked(t *testing.T) {
	const trainer = "  - subscribe: {patch: [8, 8, 4]}\n  - batch: {size: 3}\n  - train: {max_steps: 9}\n  - checkpoint: {every: 4}\n"
	const worker = "  - subscribe: {}\n  - read: {}\n  - tile: {patch: [8, 8, 4]}\n  - publish: {}\n"
	head := "queue: {name: t}\nmodel: {hidden: 4, downsample: [2, 2, 2], groups: 4}\nflow:\n"
	for _, c := range []struct{ flow, old, new, words string }{
		{trainer, "", "", ""},
		{worker, "", "", ""},
		{"  - scans: {from: [a]}\n  - publish: {}\n", "", "", ""},
		{trainer, "patch: [8, 8, 4]", "", "patch: this key is required"},
		{trainer, "[8, 8, 4]", "[8, 8, 3]", "isn't|is not a multiple"},
		{trainer, "max_steps: 9", "", "train.max_steps or run.hours"},
		{trainer, "max_steps: 9", "schedule: constant", ""},
		{trainer, "  - checkpoint: {every: 4}\n", "", "put train and checkpoint behind"},
		{trainer, "patch: [8", "held: 5, patch: [8", "fewer than can wait"},
		{trainer, "patch: [8", "held: 6, patch: [8", ""},
		{trainer, "  - batch", "  - shuffle: {}\n  - batch", "shuffle.patches: this key is required"},
		{trainer, "patch: [8, 8, 4]}\n  - batch", "patch: [8, 8, 4], held: 9}\n  - shuffle: {patches: 4}\n  - batch", "fewer than can wait"},
		{trainer, "patch: [8, 8, 4]}\n  - batch", "patch: [8, 8, 4], held: 10}\n  - shuffle: {patches: 4}\n  - batch", ""},
		{trainer, "[8, 8, 4]", "[8, 8, 0]", "has a zero"},
		{trainer, "[8, 8, 4]", "[512, 512, 128]", "more than the"},
		{worker, "read: {}", "read: {scans: [a]}", "the scans come from the queue"},
		{worker, "  - publish: {}\n", "", "end the flow with publish"},
		{worker, "  - subscribe: {}\n  - read: {}", "  - read: {scans: [a]}", "before read"},
		{worker, "  - publish: {}", "  - shuffle: {}\n  - publish: {}", "scans that may never come"},
		{worker, "publish: {}", "publish: {bytes: true}", "is of scans"},
		{"  - scans: {from: [a]}\n  - publish: {bytes: true}\n", "", "", "queue.objects"},
		{"  - scans: {from: [a]}\n  - read: {}\n", "", "", "read finds scans itself"},
		{"  - scans: {from: [a]}\n", "", "", "which only publish takes"},
		{"  - scans: {}\n  - publish: {}\n", "", "", "no folder, pattern or file"},
		{"  - read: {}\n  - tile: {}\n", "", "", "read.scans: this key is required"},
		{"  - read: {scans: [a]}\n  - publish: {}\n", "", "", "publish takes Scan or Patch, but read"},
		{trainer + "  - subscribe: {}\n", "", "", "can't stand behind checkpoint"},
	} {
		text := head + strings.Replace(c.flow, c.old, c.new, 1)
		_, err := Load("q.yaml", []byte(text), nil)
		words := strings.Split(c.words, "|")
		if (err == nil) != (c.words == "") || err != nil && !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(err.Error(), w) }) {
			t.Errorf("%s\ngot %v\nwant %q", text, err, c.words)
		}
	}
	_, err := Load("q.yaml", []byte(strings.Replace(head, "name: t", "", 1)+trainer), nil)
	if err == nil || !strings.Contains(err.Error(), "queue.name") {
		t.Error(err)
	}
	if _, err = Load("q.yaml", []byte(head+trainer), []string{"queue.bytes=1000"}); err == nil || !strings.Contains(err.Error(), "queue.bytes: 1000 bytes") {
		t.Error(err)
	}
	if _, err = Load("q.yaml", []byte(head+trainer), []string{"queue.url=nats://joe:geheim@host"}); err == nil || strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "queue.url=nats://…@host") {
		t.Error(err)
	}
}

// The files that come with flowrun are graphs, and plan knows them.
func TestQueueFilesLoad(t *testing.T) {
	for _, name := range []string{"nats-demo.yaml", "prepare.yaml", "train-nats.yaml"} {
		j, err := Load(filepath.Join("..", "configs", name), nil, nil)
		if err != nil {
			t.Error(err)
			continue
		}
		if !j.queued() {
			t.Errorf("%s has no queue", name)
		}
	}
	j := mustLoad(t, "queue: {name: t, url: \"nats://h:1\"}\nmodel: {preset: demo}\nflow:\n  - subscribe: {}\n  - read: {}\n  - tile: {}\n  - publish: {}\n")
	var b bytes.Buffer
	if err := j.Plan(context.Background(), &b); err != nil || !strings.Contains(b.String(), "nats://h:1") {
		t.Errorf("%v: %s", err, &b)
	}
}

// Who looks after a queue by a server's name doesn't mean the server that the file's run would have inside.
func TestQueueAtAnotherServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "train.yaml")
	text, err := os.ReadFile("../configs/train-nats.yaml")
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]string{
		"queue.url=nats://elsewhere:4222": "nats://elsewhere:4222", "queue.context=admin": "", "queue.creds=a.creds": "nats://127.0.0.1:4222", "queue.context=": "nats://127.0.0.1:4222",
	} {
		o, _, err := QueueAt{Where: path, Words: []string{word}}.options()
		if err != nil || o.URL != want || o.Server != (queue.Server{}) {
			t.Errorf("%s: %q, %+v, %v", word, o.URL, o.Server, err)
		}
	}
	if _, _, err := (QueueAt{Where: path, Words: []string{"queue.url=nats://a:1", "queue.server.listen=127.0.0.1:1"}}).options(); err == nil {
		t.Error("two servers")
	}
}
