package vqgan

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// filled is a codebook whose reservoir holds latents, behind its first draws.
func filled(codes, dim int, o CodebookOptions, perStep int) *codebook {
	b := newCodebook(codes, dim, o, perStep, 1)
	r := rand.New(rand.NewPCG(3, 4))
	ps := b.picks(2 * b.slots())
	z, far := make([]float32, len(ps)*dim), make([]float32, len(ps))
	for i := range z {
		z[i] = float32(r.NormFloat64())
	}
	for i := range far {
		far[i] = 1
	}
	b.take(ps, z, far, 2*b.slots())
	b.draw()
	b.steps = initSteps
	return b
}

func TestCodesFollowRunningMeans(t *testing.T) {
	b := newCodebook(2, 1, CodebookOptions{Decay: 0.5}, 8, 1)
	b.steps = initSteps
	copy(b.n, []float32{4, 2})
	copy(b.sum, []float32{8, -2})
	copy(b.vectors, []float32{2, -1})
	b.step([]float32{8, 0}, []float32{40, 0})
	// N = (4+8)/2, 2/2; z = (8+40)/2, -2/2; ΣN = 7; e = z/w with w = N up to the smoothing.
	for i, want := range []struct{ n, sum, e float64 }{{6, 24, 4}, {1, -1, -1}} {
		if float64(b.n[i]) != want.n || float64(b.sum[i]) != want.sum || math.Abs(float64(b.vectors[i])-want.e) > 1e-5 {
			t.Errorf("code %d: N %v, z %v, e %v, want %+v", i, b.n[i], b.sum[i], b.vectors[i], want)
		}
	}
}

func TestAnIdleCodeRestartsInAllItsState(t *testing.T) {
	b := filled(4, 2, CodebookOptions{Decay: 0.99, Restart: 1}, 64)
	busy, sums := []float32{10, 10, 10, 0}, make([]float32, 8)
	moved := 0
	for step := 1; step <= 40; step++ {
		before := slices.Clone(b.vectors)
		for i := range sums {
			sums[i] = busy[i/2] * before[i]
		}
		restarted := b.step(busy, sums)
		moved += restarted
		if restarted == 0 {
			continue
		}
		if step%11 != 0 && step%10 != 0 {
			t.Errorf("restarts at step %d", step)
		}
		e, n, z := b.vectors[6:8], float64(b.n[3]), b.sum[6:8]
		if slices.Equal(e, before[6:8]) || math.Abs(n-b.fresh()) > 1e-6 || math.Abs(float64(z[0])-n*float64(e[0])) > 1e-6 {
			t.Errorf("step %d: e %v, N %v, z %v", step, e, n, z)
		}
		found := false
		for slot := range b.filled {
			found = found || slices.Equal(b.pool[slot*2:][:2], e)
		}
		if !found {
			t.Error("the code isn't a latent of the reservoir")
		}
	}
	if moved < 3 || moved > 4 {
		t.Errorf("an idle code moved %d times in 40 steps", moved)
	}
	off := filled(4, 2, CodebookOptions{Decay: 0.99}, 64)
	for range 40 {
		if off.step(busy, sums) != 0 {
			t.Fatal("restarts although that is off")
		}
	}
}

func TestRestartsGoWhereCodesAreFar(t *testing.T) {
	for _, c := range []struct {
		places, want int
		served       float32 // distance of the rest
	}{{10, 8, 1e-9}, {5, 5, 0}} {
		b := filled(8, 1, CodebookOptions{Decay: 0.99, Restart: 1}, 64)
		// All of the reservoir is air at -1, well served, but for a few latents.
		for slot := range b.slots() {
			b.pool[slot], b.far[slot] = -1, c.served
		}
		for i := range c.places {
			b.pool[100*i], b.far[100*i] = float32(i), 1
		}
		clear(b.n)
		if got := b.restart(); got != c.want {
			t.Fatalf("%d of 8 codes restarted, want %d", got, c.want)
		}
		moved := slices.Sorted(slices.Values(b.vectors[:c.want]))
		for i, e := range moved {
			if e < 0 || i > 0 && e == moved[i-1] {
				t.Errorf("codes %v", moved)
			}
		}
	}
}

func TestAlikeLatentsGetOneCode(t *testing.T) {
	b := newCodebook(8, 1, CodebookOptions{Decay: 0.99, Restart: 1}, 64, 1)
	for slot := range b.slots() {
		b.pool[slot] = float32(slot % 4)
	}
	b.filled = b.slots()
	b.draw()
	for want := range 4 {
		if n := len(slices.DeleteFunc(slices.Clone(b.vectors), func(e float32) bool { return e != float32(want) })); n != 1 {
			t.Errorf("%d codes at %d: %v", n, want, b.vectors)
		}
	}
}

func TestPicksAreASample(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newCodebook(4, 1, CodebookOptions{Decay: 0.99, Restart: 1}, 64, rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(1, 14).Draw(t, "steps") {
			n := rapid.IntRange(1, 3000).Draw(t, "latents")
			ps := b.picks(n)
			if again := b.picks(n); !slices.Equal(ps, again) {
				t.Fatal("picks depend on more than the state")
			}
			slots := map[int]bool{}
			for i, p := range ps {
				if p.slot < 0 || p.slot >= b.slots() || p.latent < 0 || p.latent >= n || i > 0 && p.latent < ps[i-1].latent || slots[p.slot] {
					t.Fatalf("pick %d of %d is %+v", i, len(ps), p)
				}
				slots[p.slot] = true
			}
			b.take(ps, make([]float32, len(ps)), make([]float32, len(ps)), n)
			b.steps++
		}
	})
	// In the first steps every latent so far has the same chance: the mean age of what is left is half of all.
	b := newCodebook(4, 1, CodebookOptions{}, 64, 1)
	for step := range initSteps {
		ps := b.picks(5000)
		z := make([]float32, len(ps))
		for i, p := range ps {
			z[i] = float32(step) + float32(p.latent)/5000
		}
		b.take(ps, z, z, 5000)
		b.steps++
	}
	mean := 0.0
	for _, z := range b.pool {
		mean += float64(z) / float64(len(b.pool))
	}
	if math.Abs(mean-5) > 0.4 || b.seen != 50000 { // σ of the mean is 0.09
		t.Errorf("mean age %v of 10, %d seen", mean, b.seen)
	}
}

func TestPerplexityByHand(t *testing.T) {
	for _, c := range []struct {
		counts []float32
		want   float64
		used   int
	}{{[]float32{3, 3, 3, 3}, 4, 4}, {[]float32{9, 0, 0}, 1, 1}, {[]float32{1, 1, 0}, 2, 2}} {
		if p, used := perplexity(c.counts); math.Abs(p-c.want) > 1e-12 || used != c.used {
			t.Errorf("%v: %v, %d used", c.counts, p, used)
		}
	}
}
