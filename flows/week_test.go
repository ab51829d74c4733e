package flows

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/read"
)

// Of pictures that there are too many of, the first, the last, those of checkpoints and some between are left, spread evenly.
func TestSurplus(t *testing.T) {
	if gone := surplus([]int{10, 20, 30, 40, 50, 60}, 4, func(step int) bool { return step == 20 }); !slices.Equal(gone, []int{30, 50}) {
		t.Errorf("%v", gone)
	}
	rapid.Check(t, func(t *rapid.T) {
		most, every := rapid.IntRange(2, 70).Draw(t, "most"), rapid.IntRange(1, 1000).Draw(t, "every")
		best := every * rapid.IntRange(1, 400).Draw(t, "best")
		var steps []int
		for n := range 400 {
			steps = append(steps, (n+1)*every)
			gone := surplus(steps, most, func(step int) bool { return step == best })
			steps = slices.DeleteFunc(steps, func(step int) bool { return slices.Contains(gone, step) })
			if steps[0] != every || steps[len(steps)-1] != (n+1)*every || len(steps) > max(most, 3) {
				t.Fatalf("behind %d: %v", n+1, steps)
			}
			if (n+1)*every >= best && !slices.Contains(steps, best) {
				t.Fatalf("the best, %d, is gone: %v", best, steps)
			}
		}
		widest := 0
		for i := range len(steps) - 1 {
			widest = max(widest, steps[i+1]-steps[i])
		}
		if even := 400 * every / max(1, most-1); most > 8 && widest > 4*(even+every) {
			t.Fatalf("%d apart where %d would be even: %v", widest, even, steps)
		}
	})
}

// A week of steps, validated every ten minutes: what lies in the folder and what the report holds stays small.
func TestAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pace = 20 * time.Second
		const week, validated, listed = int(7 * 24 * time.Hour / pace), int(10 * time.Minute / pace), 300
		r, _ := watched(t, []pipe.Stat{{Stage: "read"}, {Stage: "train"}}, observe.Options{})
		w := r.watch
		var err error
		if r.metrics, err = observe.OpenMetrics(r.job.run.Dir, 0); err != nil {
			t.Fatal(err)
		}
		if r.quarantine, err = read.OpenQuarantine(r.file("quarantine.jsonl")); err != nil {
			t.Fatal(err)
		}
		for i := range listed {
			if err := r.quarantine.Add(read.Bad{Scan: fmt.Sprintf("scan-%06d.nii.gz", i), Reason: "the file ends after 12345 of 67890 bytes"}); err != nil {
				t.Fatal(err)
			}
		}
		var picture bytes.Buffer
		if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 64, 64))); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(r.file("samples"), 0o777); err != nil {
			t.Fatal(err)
		}
		w.events.open(0)
		history := r.metrics.History()
		for step := 1; step <= week; step++ {
			time.Sleep(pace)
			s := observe.Step{Step: step, Recon: 1 / float64(step), Loss: math.Sin(float64(step)), PSNR: 30, LR: 1e-4, Seconds: pace.Seconds(), BoundBy: "train 90%",
				More: map[string]float64{"train/gan_loss": 1, "train/disc_loss": 1, "train/gan_weight": 0.1}}
			if err := r.metrics.Train(s); err != nil {
				t.Fatal(err)
			}
			w.events.step(s)
			w.took(s, week)
			w.sample(time.Now())
			if step%validated > 0 {
				continue
			}
			path := r.samplePath(step)
			if err := os.WriteFile(path, picture.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
			w.drew(path)
			w.events.picture(step, path)
			w.events.validation(observe.Val{Step: step, Metrics: map[string]float64{"val/psnr": 30, "val/ssim": 0.9}}, make([]int64, 16384))
			if err := r.thinSamples(); err != nil {
				t.Fatal(err)
			}
		}
		w.events.close()
		if err := r.metrics.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(r.file("samples", "*"))
		if err != nil || len(files) != mostSamples || len(w.pictures) != mostSamples {
			t.Errorf("%d pictures, of which the page knows %d (want %d), %v", len(files), len(w.pictures), mostSamples, err)
		}
		if shown := w.linked(); len(shown) != pagePictures || shown[len(shown)-1].Caption != fmt.Sprintf("Step %d", validated) || shown[0].Caption != fmt.Sprintf("Step %d", week) {
			t.Errorf("the page shows %v", shown)
		}
		events, err := filepath.Glob(r.file("events.out.tfevents.*"))
		if err != nil || len(events) != 1 {
			t.Fatalf("%v, %v", events, err)
		}
		text, err := os.ReadFile(events[0])
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("val/sample")); n < 50 || n > 200 {
			t.Errorf("%d pictures for TensorBoard", n)
		}
		if n := bytes.Count(text, []byte("train/psnr")); n < 5000 || n > 20000 {
			t.Errorf("%d points for TensorBoard", n)
		}
		if len(text) > 16<<20 {
			t.Errorf("the event file has %s", size(int64(len(text))))
		}
		for _, name := range history.Names() {
			if n := len(history.Curve(name)); n > 400 {
				t.Errorf("%s has %d points", name, n)
			}
		}
		count := new(counter)
		if err := w.page().Write(count); err != nil || *count > 2<<20 {
			t.Errorf("the page has %s without its pictures, %v", size(int64(*count)), err)
		}
		t.Logf("events %s, page %s", size(int64(len(text))), size(int64(*count)))
	})
}

// counter counts what is written to it.
type counter int

var _ io.Writer = (*counter)(nil)

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}
