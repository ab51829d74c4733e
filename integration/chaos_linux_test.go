package integration

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

	tags map[int][]volume.Tag // of the checkpoints that there were when a process ended, by step
}

const run = "disk/run"

// faults are what may happen to a running process. Each waits until it is through, and says whether it hit.
var faults = []struct {
	name string
	hit  func(n *night) bool
}{
	{"killed", func(n *night) bool {
		n.r.signal(unix.SIGKILL)
		return n.r.wait().code < 0
	}},
	{"stopped", func(n *night) bool {
		n.r.signal([]os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP}[n.random.IntN(3)])
		o := n.r.wait()
		if o.code > 0 && o.code != 75 { // -1: it didn't listen yet
			n.Fatalf("exit %d: %s", o.code, o.said())
		}
		return o.code != 0
	}},
	{"frozen", func(n *night) bool {
		n.r.signal(unix.SIGSTOP)
		n.sleep(300)
		n.r.signal(unix.SIGCONT)
		return true
	}},
	{"disk full", (*night).fullDisk},
	{"disk full for good", (*night).noSpace},
	{"folder read-only", (*night).readOnly},
	{"clock jumps", func(n *night) bool {
		if n.clock == nil {
			return false
		}
		err := n.clock.jump(n.sometime()) // fails where the process is over
		return err == nil
	}},
	{"clock jumps while frozen", func(n *night) bool {
		if n.clock == nil {
			return false
		}
		n.r.signal(unix.SIGSTOP)
		n.sleep(30)
		err := n.clock.jump(n.sometime())
		n.r.signal(unix.SIGCONT)
		return err == nil
	}},
	{"scans slow to open", (*night).slowScans},
}

// sleep takes up to so many milliseconds.
func (n *night) sleep(most int) { time.Sleep(time.Duration(n.random.IntN(most+1)) * time.Millisecond) }

// sometime is up to ten years away.
func (n *night) sometime() time.Duration {
	return time.Duration((n.random.Float64() - 0.5) * float64(20*365*24*time.Hour))
}

// size sets how much the disk holds: 0 bytes more than it does, or plenty.
func (n *night) size(plenty bool) {
	n.Helper()
	bytes := int64(1 << 30)
	if !plenty {
		var s unix.Statfs_t
		n.check(unix.Statfs(n.path("disk"), &s))
		bytes = max(1, int64(s.Blocks-s.Bfree)) * s.Bsize
	}
	n.check(unix.Mount("none", n.path("disk"), "tmpfs", unix.MS_REMOUNT, "size="+strconv.FormatInt(bytes, 10)))
}

// paused counts how often the process has said that it waits for room.
func (n *night) paused() int { return strings.Count(n.r.stderr.String(), `"event":"paused"`) }

func (n *night) fullDisk() bool {
	if !n.small {
		return false
	}
	before := n.paused()
	n.size(false)
	hit := n.r.until(func() bool { return n.paused() > before })
	n.sleep(100)
	n.size(true)
	return hit
}

// noSpace ends a run that waits for room.
func (n *night) noSpace() bool {
	if !n.small {
		return false
	}
	defer n.size(true)
	before := n.paused()
	n.size(false)
	if !n.r.until(func() bool { return n.paused() > before }) {
		return false
	}
	n.sleep(100)
	n.r.signal(unix.SIGTERM)
	o := n.r.wait()
	if o.code != 1 || !strings.Contains(strings.Join(o.said(), "\n"), "no space left on device") {
		n.Fatalf("exit %d: %s", o.code, o.said())
	}
	return true
}

// readOnly ends a run at its next checkpoint, and refuses to begin.
func (n *night) readOnly() bool {
	if !n.small {
		return false
	}
	dir := n.path(run)
	n.check(os.MkdirAll(dir, 0o777)) // it may not have come so far
	n.check(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	defer func() { n.check(unix.Unmount(dir, unix.MNT_DETACH)) }()
	n.check(unix.Mount("none", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	o := n.r.wait()
	if o.code == 0 {
		return false // its last checkpoint was written
	}
	if o.code == 2 { // it had hardly begun
		n.tells(o, 2, "run.dir", "read-only file system")
	} else {
		n.tells(o, 1, "read-only file system")
	}
	n.tells(n.run(n.words...), 2, "run.dir", "read-only file system", "choose a folder")
	return true
}

// slowScans has whoever opens a scan wait, by a lease, for as long as a disk takes that has gone to sleep.
func (n *night) slowScans() bool {
	end := time.After(2 * time.Second)
	var held []*os.File
	defer func() {
		for _, f := range held {
			_ = f.Close() // which ends the lease
		}
	}()
	for _, path := range n.scans() {
		if f, err := lease(path); err == nil {
			held = append(held, f)
		}
	}
	hit := false
	for len(held) > 0 {
		i := slices.IndexFunc(held, wanted)
		if i >= 0 {
			hit = true
			n.sleep(150)
			n.check(held[i].Close())
			held = slices.Delete(held, i, i+1)
		}
		select {
		case <-end:
			return hit
		case <-n.r.over:
			return hit
		case <-time.After(time.Millisecond):
		}
	}
	return hit
}

func (n *night) scans() []string {
	n.Helper()
	files, err := filepath.Glob(n.path("scans", "*.nii*"))
	n.check(err)
	return files
}

// lease opens a file that nobody else has open, and has others wait who want to open it. It ends with the file.
func lease(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// wanted says whether somebody waits for the end of a lease.
func wanted(f *os.File) bool {
	kind, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && kind != unix.F_WRLCK
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
	if n.r, n.clock, err = n.startWarped(n.words...); err != nil {
		n.r.wait()
		n.r, n.clock = n.start(n.words...), nil
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
	hits := make([]int, len(faults))
	able := true
	for round := range nights(len(faults) / each) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			n := newNight(t, round)
			turn := len(faults) / each // rounds in which each fault has its turn
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
				able = able && n.small && n.clock != nil
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

// changes are what may happen to a scan before its first patch.
var changes = []struct {
	name string
	do   func(n *night, path string)
}{
	{"replaced", func(n *night, path string) {
		b, err := os.ReadFile(n.path("scans", plain)) // a good scan, but another
		n.check(err)
		n.check(os.WriteFile(path+".new", b, 0o666))
		n.check(os.Rename(path+".new", path))
	}},
	{"truncated", func(n *night, path string) {
		info, err := os.Stat(path)
		n.check(err)
		n.check(os.Truncate(path, n.random.Int64N(info.Size())))
	}},
	{"truncated while it is opened", func(n *night, path string) {
		f, err := lease(path)
		if err != nil {
			n.check(os.Truncate(path, 400))
			return
		}
		n.r.until(func() bool { return wanted(f) })
		info, err := f.Stat()
		n.check(err)
		n.check(f.Truncate(n.random.Int64N(info.Size())))
		n.check(f.Close())
	}},
	{"removed", func(n *night, path string) { n.check(os.Remove(path)) }},
	{"overwritten", func(n *night, path string) { n.spoil(filepath.Base(path)) }},
}

// A scan that changes before a patch of it was trained might as well have been bad from the start, whatever else happens.
// Later its places stay, no patch of it is trained any more, and those of other scans are trained as ever.
func TestScansChange(t *testing.T) {
	t.Parallel()
	for round := range nights(2) {
		change := changes[(round+int(*seed%uint64(len(changes))))%len(changes)]
		t.Run(fmt.Sprintf("%s %d", change.name, round), func(t *testing.T) {
			n := newNight(t, round, "shuffle.volumes=1", "read.ahead=1", "read.cache=")
			n.must(append(n.words, "run.dir=whole", "train.epochs=1")...)
			n.look("whole")
			order := slices.Concat(slices.SortedFunc(maps.Values(n.tags), func(a, b []volume.Tag) int { return a[0].Seq - b[0].Seq })...)
			clear(n.tags)
			slices.Reverse(order)
			victim := order[slices.IndexFunc(order, func(t volume.Tag) bool { return t.Scan != plain })].Scan // a checksum ends it
			tiles := 0                                                                                        // of both epochs
			for _, tag := range order {
				if tag.Scan == victim {
					tiles += 2
				}
			}
			before := n.file("scans", victim)
			n.spoil(victim)
			n.must(append(n.words, "run.dir=without")...)
			if why := n.reasons("without"); len(why) != 1 || why[victim] == "" {
				t.Fatalf("quarantined: %v (want %s)", why, victim)
			}
			without := n.trained("without")
			n.write(filepath.Join("scans", victim), string(before))

			n.begin()
			goal := 1 + n.random.IntN(4)
			n.r.until(func() bool { return n.reached(run) >= goal })
			change.do(n, n.path("scans", victim))
			// A scan that isn't there at a resume is none of the run's (TestScansThatMoved), and without a checkpoint a run begins anew.
			if change.name != "removed" && n.sound(run) > 0 && n.random.IntN(2) == 0 && n.moment() {
				n.r.signal(unix.SIGKILL)
				n.r.wait()
				n.look(run)
				n.begin()
			}
			if o := n.r.wait(); o.code != 0 {
				t.Fatalf("exit %d: %s", o.code, o.said())
			}
			n.swept(run)
			trained := n.trained(run)
			ofVictim := 0
			for key := range trained {
				if strings.HasPrefix(key, victim+" ") {
					ofVictim++
					delete(trained, key)
				}
			}
			n.sameTrained(without, trained)
			why := n.reasons(run)
			if len(why) == 0 && ofVictim == tiles {
				t.Skip("it had been read for the last time")
			}
			if len(why) != 1 || why[victim] == "" {
				t.Fatalf("quarantined: %v (want %s)", why, victim)
			}
			t.Logf("after step %d: %s; %d of its patches had been trained", goal, n.reasons(run)[victim], ofVictim)
			if ofVictim == 0 {
				n.sameRun("without", run)
			}
		})
	}
}
