package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// variants of a run. words are appended to those of tiny; resumed ones are put behind them in turn where a run goes on.
var variants = []struct {
	name    string
	words   string
	resumed []string
}{
	{"workers", "shuffle.volumes=3", []string{"run.workers=2", "run.workers=1 read.ahead=4", "run.workers=3"}},
	{"micro-batches", "model.norm=group train.micro_batch=1 train.loss.l2=0.5", []string{"run.workers=2", ""}},
	{"cache", "model.decoder=full model.padding=zero train.ema=0 train.clip=0 batch.size=5 train.micro_batch=2 read.cache=cache shuffle.volumes=9",
		[]string{"", "read.cache=", "run.workers=2"}},
	{"augment", "augment.rotate90=true augment.noise_hu=30 augment.scale=0.1 tile.body=0.5 train.schedule=constant", []string{"run.workers=2", ""}},
}

// untouched runs each variant to its end, once, for whoever wants to compare.
func (p *place) untouched(words []string) {
	p.Helper()
	p.must(append(words, "run.dir=whole")...)
	if n := p.events("whole", "start")[0]["patches_per_epoch"].(float64); int(n)%3 == 0 {
		p.Fatal("no batch crosses the end of an epoch")
	}
}

// A run is killed at random moments until it is done, some moments after each of its steps, while it starts included.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	for round := range *rounds {
		v := variants[round%len(variants)]
		t.Run(fmt.Sprintf("%s %d", v.name, round), func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			words := append([]string{"train.yaml"}, strings.Fields(v.words)...)
			p.untouched(words)
			random := rand.New(rand.NewPCG(*seed, uint64(round)))
			kills := 0
			for ; ; kills++ {
				args := append(words, strings.Fields(v.resumed[kills%len(v.resumed)])...)
				if kills == 8 {
					p.must(args...)
					break
				}
				r := p.start(args...)
				goal := p.reached("run") + random.IntN(10)
				r.until(func() bool { return p.reached("run") >= goal })
				wait := time.After(time.Duration(random.IntN(30)) * time.Millisecond)
				r.until(func() bool {
					select {
					case <-wait:
						return true
					default:
						return false
					}
				})
				if r.kill() {
					break
				}
				p.sound("run")
			}
			p.sameRun("whole", "run")
			p.swept("run")
			p.swept("cache")
			t.Logf("%d kills", kills)
		})
	}
}

// swept checks that no temporary file is left.
func (p *place) swept(dir string) {
	p.Helper()
	for _, pattern := range []string{"*.tmp", "*/*.tmp", "*/.*.tmp"} {
		if files, err := filepath.Glob(p.path(dir, pattern)); err != nil || len(files) > 0 {
			p.Errorf("left behind: %v, %v", files, err)
		}
	}
}

// Kills that are aimed: what lies on the disk afterwards says whether one hit.
func TestKilledIn(t *testing.T) {
	t.Parallel()
	last := func(p *place) entry {
		m := p.lines("run", "metrics.jsonl")
		if len(m) == 0 {
			return entry{}
		}
		return m[len(m)-1]
	}
	aims := []struct {
		name string
		hit  func(p *place) bool
		soon bool // once in a run
	}{
		{"a validation", func(p *place) bool {
			e := last(p)
			return e.step() > 0 && e.step()%10 == 0 && !e.validation()
		}, false},
		{"the write of a checkpoint", func(p *place) bool {
			files, err := filepath.Glob(p.path("run", "checkpoints", "*.tmp"))
			return err == nil && len(files) > 0
		}, false},
		{"between a validation and its checkpoint", func(p *place) bool {
			e := last(p)
			_, err := os.Stat(p.path("run", "checkpoints", fmt.Sprintf("step-%08d.safetensors", e.step())))
			return e.validation() && os.IsNotExist(err)
		}, false},
		{"the first batch of an epoch", func(p *place) bool {
			m := p.lines("run", "metrics.jsonl")
			return len(m) > 1 && m[len(m)-1]["epoch"] != m[len(m)-2]["epoch"]
		}, true},
		{"the middle of the window", func(p *place) bool {
			e := last(p)
			return e.step()%4 == 3 && !e.validation()
		}, false},
		{"the last step", func(p *place) bool {
			start := p.events("run", "start")
			return len(start) > 0 && last(p).step() == (int(start[0]["patches_per_epoch"].(float64))*2+2)/3
		}, true},
	}
	for i, aim := range aims {
		t.Run(aim.name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			words := append([]string{"train.yaml", "shuffle.volumes=3", "train.validate.patches=0"}, strings.Fields(variants[i%2].words)...)
			p.untouched(words)
			hits := 0
			for try := 0; try < 8 && hits == 0; try++ {
				p.check(os.RemoveAll(p.path("run")))
				for kills := 0; kills < 4; kills++ {
					r := p.start(words...)
					before := last(p).step()
					r.until(func() bool { return (aim.soon || last(p).step() > before) && aim.hit(p) })
					if r.kill() {
						break
					}
					if aim.hit(p) {
						hits++
						if aim.soon {
							break
						}
					}
					p.sound("run")
				}
				p.must(words...)
				p.sameRun("whole", "run")
				p.swept("run")
			}
			if hits == 0 {
				t.Error("no kill hit")
			}
			t.Logf("%d hits", hits)
		})
	}
}
