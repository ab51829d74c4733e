package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/volume"
)

// night is a run to which things happen, in disk/run, beside one that nobody disturbs, in whole.
type night struct {
	*place
	random *rand.Rand
	words  []string
	small  bool // disk/ is a disk of its own, whose size can be set

	r     *process
	clock *clock // nil where clocks can't be set
	gate  *gate  // nil where there can't be one

	tags map[int][]volume.Tag // of the checkpoints that there were when a process ended, by step
}

const run = "disk/run"

// sleep takes up to so many milliseconds.
func (n *night) sleep(most int) { time.Sleep(time.Duration(n.random.IntN(most+1)) * time.Millisecond) }

// sometime is up to ten years away.
func (n *night) sometime() time.Duration {
	return time.Duration((n.random.Float64() - 0.5) * float64(20*365*24*time.Hour))
}

// newNight makes the disk and runs what nobody disturbs.
func newNight(t *testing.T, round int, words ...string) *night {
	p := newPlace(t)
	v := variants[round%len(variants)]
	// Checkpoints that were validated are kept, so all but those of stops stay.
	words = append(append([]string{"train.yaml", "checkpoint.keep=1000", "checkpoint.every=8", "train.validate.every=8", "train.validate.patches=1"}, strings.Fields(v.words)...), words...)
	n := &night{place: p, random: rand.New(rand.NewPCG(*seed, uint64(round))), words: append(words, "run.dir="+run), tags: map[int][]volume.Tag{}}
	p.check(os.Mkdir(p.path("disk"), 0o777))
	switch err := unix.Mount("none", p.path("disk"), "tmpfs", 0, "size=1g"); {
	case err == nil:
		n.small = true
		t.Cleanup(func() { _ = unix.Unmount(p.path("disk"), unix.MNT_DETACH) })
	case !errors.Is(err, unix.EPERM):
		t.Fatal(err)
	}
	return n
}

// nights are as many as -rounds asks for, or a few.
func nights(few int) int {
	if *rounds > 4 {
		return *rounds
	}
	return few
}

// begin starts the process, half of the time in another year.
func (n *night) begin() {
	n.Helper()
	var err error
	if n.r, n.gate, n.clock, err = n.startGated(n.words...); err != nil {
		n.r.wait()
		n.r, n.gate, n.clock = n.start(n.words...), nil, nil
	}
	if n.clock != nil && n.random.IntN(2) == 0 {
		_ = n.clock.jump(n.sometime())
	}
}

// moment waits for a random one, soon, and says whether the process is still there.
func (n *night) moment() bool {
	goal := n.reached(run) + n.random.IntN(14)
	alive := n.r.until(func() bool { return n.reached(run) >= goal })
	n.sleep(20)
	return alive
}

// look checks the checkpoints that a process left, and notes what they say was trained.
func (n *night) look(dir string) {
	n.Helper()
	n.sound(dir)
	files, err := filepath.Glob(n.path(dir, "checkpoints", "step-*.safetensors"))
	n.check(err)
	for _, f := range files {
		s, err := checkpoint.Load(f)
		n.check(err)
		if len(s.Tags) > 0 { // a validation that a stop cut short is made up for in a checkpoint that trained nothing more
			n.tags[s.Step] = s.Tags
		}
	}
}

// trained are the patches that went into a run's steps, as its checkpoints name them. None is there twice.
func (n *night) trained(dir string) map[string]bool {
	n.Helper()
	n.look(dir)
	all := map[string]bool{}
	for _, tags := range n.tags {
		for _, t := range tags {
			key := identity(t)
			if all[key] {
				n.Errorf("%s: %s was trained twice", dir, key)
			}
			all[key] = true
		}
	}
	clear(n.tags)
	return all
}

func identity(t volume.Tag) string {
	return fmt.Sprintf("%s epoch %d tile %d", t.Scan, t.Epoch, t.Tile)
}

// sameTrained checks that no patch of a was skipped in b, and none added.
func (n *night) sameTrained(a, b map[string]bool) {
	n.Helper()
	if len(a) == 0 {
		n.Error("the checkpoints name no patch")
	}
	for key := range a {
		if !b[key] {
			n.Errorf("%s was skipped", key)
		}
	}
	if len(a) != len(b) {
		n.Errorf("%d patches were trained (want %d)", len(b), len(a))
	}
}

// Whatever happens to a process, its disk and its clock, the run goes on to the same end, with each patch trained once.
func TestNothingIsLost(t *testing.T) {
	t.Parallel()
	const each = 3
	turn := (len(faults) + each - 1) / each // rounds in which each fault has its turn
	hits := make([]int, len(faults))
	able := true
	for round := range nights(turn) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			n := newNight(t, round)
			deal := rand.New(rand.NewPCG(*seed, uint64(1<<32+round/turn))).Perm(len(faults))
			n.must(append(n.words, "run.dir=whole")...)
			whole := n.trained("whole")
			if epochs := n.events("whole", "start")[0]["patches_per_epoch"].(float64); len(whole) != 2*int(epochs) {
				t.Fatalf("%d patches were trained, %g in each of two epochs", len(whole), epochs)
			}
			n.begin()
			for k := range each {
				if !n.moment() {
					break
				}
				f := deal[(round*each+k)%len(deal)]
				if faults[f].hit(n) {
					hits[f]++
					t.Logf("at step %d: %s", n.reached(run), faults[f].name)
				}
				able = able && n.small && n.clock != nil && n.gate != nil
				select {
				case <-n.r.over:
					n.look(run)
					n.begin()
				default:
				}
			}
			if o := n.r.wait(); o.code != 0 {
				t.Fatalf("exit %d: %s", o.code, o.said())
			}
			n.sameRun("whole", run)
			n.sameTrained(whole, n.trained(run))
			n.swept(run)
		})
	}
	for f, n := range hits {
		t.Logf("%s: %d times", faults[f].name, n)
		if n == 0 && able && *rounds*each >= 2*len(faults) {
			t.Errorf("%s: not once", faults[f].name)
		}
	}
}
