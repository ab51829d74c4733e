package vqgan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/gpu/cpu"
	"github.com/flowrun/flowrun/gpu/nn"
)

// The names of the first codebook's arrays.
const (
	nameVectors = "codebook" + suffixVectors
	nameN       = "codebook" + suffixN
	nameSum     = "codebook" + suffixSum
	namePool    = "codebook" + suffixPool
	nameFar     = "codebook" + suffixFar
)

// tinies are tiny with each of the quantisers.
func tinies() map[string]Config {
	all := map[string]Config{}
	for _, q := range []string{EMA, Cosine, FSQ, Residual} {
		c, _ := tiny()
		if c.Quantizer = q; q == FSQ {
			c.Levels, c.Embedding, c.Codes = []int{5, 4, 3}, 3, 60
		}
		all[q] = c
	}
	return all
}

func length(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

func TestEveryQuantiserLearns(t *testing.T) {
	for name, c := range tinies() {
		_, o := tiny()
		o.EMA = 0
		s := open(t, c, o, 1)
		x := smooth(o.Patch, 2, 7)
		var first, last Stats
		for i := range 60 {
			var err error
			if last, err = s.Step(x, x, 2, 3e-3); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = last
			}
		}
		t.Logf("%s: L1 %.3f → %.3f, commitment %.3g, perplexity %.1f, %d codes", name, first.L1, last.L1, last.Commitment, last.Perplexity, last.Used)
		if last.L1 > first.L1/2 {
			t.Errorf("%s: L1 goes %.3f → %.3f (want half)", name, first.L1, last.L1)
		}
		if last.Perplexity < 3 || last.Used < 6 || last.Used > c.Codes*c.Depth() {
			t.Errorf("%s: perplexity %.2f, %d codes used", name, last.Perplexity, last.Used)
		}
		if (last.Commitment == 0) != (name == FSQ) {
			t.Errorf("%s: commitment %g", name, last.Commitment)
		}
	}
}

func TestEveryQuantiserResumes(t *testing.T) {
	for name, c := range tinies() {
		for _, stop := range []int{1, 13} { // within the first draws of the codebooks, and behind them
			_, o := tiny()
			o.Codebook.Decay, o.Codebook.Restart = 0.5, 4 // so that codes do restart
			whole := open(t, c, o, 2)
			var middle []Array
			restarts := 0
			for i := range 16 {
				if i == stop {
					middle = state(t, whole)
				}
				restarts += step(t, whole, uint64(i), 1+i%2).Restarted
			}
			if (restarts == 0) != (name == FSQ) {
				t.Errorf("%s: %d codes restarted", name, restarts)
			}
			var bytes int64
			for _, a := range middle {
				bytes += 4 * int64(len(a.Data))
			}
			if bytes != whole.StateBytes() {
				t.Errorf("%s: a state of %d bytes, said %d", name, bytes, whole.StateBytes())
			}
			resumed := open(t, c, o, 1)
			step(t, resumed, 99, 2) // another past
			if err := resumed.SetState(middle, true); err != nil {
				t.Fatal(err)
			}
			for i := stop; i < 16; i++ {
				step(t, resumed, uint64(i), 1+i%2)
			}
			same(t, name, state(t, whole), state(t, resumed))
		}
	}
}

// Beside discriminators, and with what is recomputed in the backward pass, micro-batches and threads, the bits are the same.
func TestEveryQuantiserBesideDiscriminators(t *testing.T) {
	for name, c := range tinies() {
		c.Decoder = "full"
		_, o := tiny()
		o.GAN = GAN{Weight: 1, Loss: "hinge", Image: 1, Volume: 1, Planes: []string{"z"}, Slices: 1, Channels: 4, Layers: 1, Norm: "none", LR: 1, Beta1: 0.5,
			Beta2: 0.9, Features: 1, Adaptive: 10, R1Every: 1}
		var want []Array
		for threads, r := range []nn.Recompute{nn.None, nn.Norms, nn.All} {
			o.recompute = r
			s := open(t, c, o, 1+threads)
			for i := range 3 {
				if stats := step(t, s, uint64(i), 2); !stats.GAN.Active {
					t.Fatalf("%s: %+v", name, stats)
				}
			}
			if got := state(t, s); want == nil {
				want = got
			} else {
				same(t, name, want, got)
			}
		}
	}
}

func TestEveryQuantisersCoderGivesTheBitsOfTheSession(t *testing.T) {
	for name, c := range tinies() {
		_, o := tiny()
		s := open(t, c, o, 1)
		for i := range 12 {
			step(t, s, uint64(i), 2)
		}
		x := smooth(o.Patch, 3, 99)
		want, wantCodes := make([]float32, len(x)), make([]int32, 3*s.codesLen())
		if err := s.Reconstruct(want, x, 3, true, wantCodes); err != nil {
			t.Fatal(err)
		}
		coder := openCoder(t, c, state(t, s), true, CoderOptions{Patch: o.Patch, Batch: 2})
		got, codes := make([]float32, len(x)), make([]int32, len(wantCodes))
		if err := coder.Reconstruct(got, x, 3, codes); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(bitsOf(got), bitsOf(want)) || !slices.Equal(codes, wantCodes) {
			t.Errorf("%s: Reconstruct differs from the session's", name)
		}
		n := s.voxels()
		for k := range 3 {
			idx, latents, quantised := encoded(t, coder, x[k*n:(k+1)*n], o.Patch)
			if !slices.Equal(idx, wantCodes[k*len(idx):(k+1)*len(idx)]) {
				t.Fatalf("%s: Encode gives other codes", name)
			}
			for _, q := range [][]float32{nil, quantised} {
				y := make([]float32, n)
				if err := coder.Decode(y, idx, q, o.Patch); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(bitsOf(y), bitsOf(want[k*n:(k+1)*n])) {
					t.Fatalf("%s: Decode gives other voxels", name)
				}
			}
			onScale(t, coder, latents, quantised)
		}
		idx := make([]int32, c.Depth()*product(c.Latents(o.Patch)))
		idx[len(idx)-1] = int32(c.Codes)
		if err := coder.Decode(make([]float32, n), idx, nil, o.Patch); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is %d (the codebook has %[1]d)", c.Codes)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// onScale says that latents before quantisation are on the scale of those after it.
func onScale(t *testing.T, s *Coder, latents, quantised []float32) {
	t.Helper()
	for i := 0; i < len(latents); i += s.c.Embedding {
		z, q := latents[i:][:s.c.Embedding], quantised[i:][:s.c.Embedding]
		switch s.c.Quantizer {
		case Cosine:
			if math.Abs(length(z)-1) > 1e-6 || math.Abs(length(q)-1) > 1e-6 {
				t.Fatalf("latent of length %v, code of %v", length(z), length(q))
			}
		case FSQ:
			for j, n := range s.c.Levels {
				if d := math.Abs(float64(z[j] - q[j])); d > 0.5/float64(n/2)+1e-6 {
					t.Fatalf("channel %d of %d levels: %v becomes %v", j, n, z[j], q[j])
				}
			}
		}
	}
}

func TestResidualCodesAddUp(t *testing.T) {
	c := tinies()[Residual]
	r := rand.New(rand.NewPCG(3, 3))
	books := make([][]float32, 2)
	for i := range books {
		for range c.Codes * c.Embedding {
			books[i] = append(books[i], float32(r.NormFloat64()))
		}
	}
	size := [3]int{12, 8, 6}
	weights := drawn(t, c, 1)
	for i := range weights {
		if weights[i].Name == nameVectors {
			weights[i].Data = books[0]
		}
	}
	weights = append(weights, Array{Name: "codebook2.embeddings", Shape: []int{c.Codes, c.Embedding}, Data: books[1]})
	s := openCoder(t, c, weights, false, CoderOptions{Patch: size})
	idx, latents, quantised := encoded(t, s, smooth(size, 1, 3), size)
	nearest := func(book, z []float32) (best int) {
		least := math.Inf(1)
		for k := range c.Codes {
			d := 0.0
			for j, v := range book[k*c.Embedding:][:c.Embedding] {
				d += (float64(z[j]) - float64(v)) * (float64(z[j]) - float64(v))
			}
			if d < least {
				least, best = d, k
			}
		}
		return best
	}
	for i := 0; i < len(idx); i += 2 {
		z := slices.Clone(latents[i/2*c.Embedding:][:c.Embedding])
		for level := range 2 {
			if k := nearest(books[level], z); int(idx[i+level]) != k {
				t.Fatalf("latent %d: code %d of level %d (want %d)", i/2, idx[i+level], level, k)
			}
			for j := range z {
				z[j] -= books[level][int(idx[i+level])*c.Embedding+j]
			}
		}
		for j := range z {
			if d := latents[i/2*c.Embedding+j] - quantised[i/2*c.Embedding+j] - z[j]; math.Abs(float64(d)) > 1e-6 {
				t.Fatalf("latent %d: channel %d is off by %v", i/2, j, d)
			}
		}
	}
}

// The second codebook begins at what the first leaves.
func TestFirstCodesOfResidues(t *testing.T) {
	c := tinies()[Residual]
	_, o := tiny()
	s := open(t, c, o, 1)
	x := smooth(o.Patch, 2, 7)
	if err := s.firstCodes(x, 2); err != nil {
		t.Fatal(err)
	}
	first, second := s.levels[0].book, s.levels[1].book
	if first.filled != 2*s.cells() || second.filled != first.filled {
		t.Fatalf("%d and %d latents (want %d)", first.filled, second.filled, 2*s.cells())
	}
	for slot := range second.filled {
		z := first.pool[slot*c.Embedding:][:c.Embedding]
		least, at := float32(math.Inf(1)), int32(0)
		for k := range int32(c.Codes) {
			if d := first.distance(z, k); d < least {
				least, at = d, k
			}
		}
		for j := range z {
			if rest := z[j] - first.vectors[int(at)*c.Embedding+j]; rest != second.pool[slot*c.Embedding+j] {
				t.Fatalf("latent %d, channel %d: %v is left (want %v)", slot, j, second.pool[slot*c.Embedding+j], rest)
			}
		}
	}
}

// Of fsq, codes and vectors are one to one, and what the graph makes of a vector is that vector's code.
func TestLevelsAreAllReached(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Quantizer: FSQ, Levels: rapid.SliceOfN(rapid.IntRange(2, 9), 1, 4).Draw(t, "levels")}
		if err := c.Settle(nil); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for k := range c.Codes {
			q := make([]float32, c.Embedding)
			if err := c.lookup(q, []int32{int32(k)}, nil); err != nil {
				t.Fatal(err)
			}
			for j, x := range q {
				if n := c.Levels[j]; x < -1 || x > 1 || x == 1 && n%2 == 0 {
					t.Fatalf("code %d: %v of %d levels", k, x, n)
				}
			}
			seen[fmt.Sprint(q)] = true
		}
		if len(seen) != c.Codes {
			t.Fatalf("%v: %d vectors of %d codes", c.Levels, len(seen), c.Codes)
		}
	})
}

// Whatever happens to codes on the sphere, they stay there.
func TestCodesStayOnTheSphere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		codes, dim := rapid.IntRange(2, 9).Draw(t, "codes"), rapid.IntRange(1, 4).Draw(t, "dim")
		b := newCodebook(codes, dim, CodebookOptions{Decay: 0.9, Restart: 1}, 40*codes, rapid.Uint64().Draw(t, "seed"))
		b.unit = true
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "latents"), 1))
		few := rapid.IntRange(1, 5).Draw(t, "different") // fewer than codes: some are drawn beside others
		for range initSteps + 4 {
			z := make([]float32, 0, 40*dim)
			for i := range 40 {
				one := direction(key(uint64(i%few), "latent"), dim)
				z = append(z, one...)
			}
			ps := b.picks(40)
			var vectors, far []float32
			for _, p := range ps {
				vectors, far = append(vectors, z[p.latent*dim:][:dim]...), append(far, 1)
			}
			b.take(ps, vectors, far, 40)
			counts, sums := make([]float32, codes), make([]float32, codes*dim)
			for i := range 40 {
				k := r.IntN(codes)
				counts[k]++
				for j := range dim {
					sums[k*dim+j] += z[i*dim+j]
				}
			}
			b.step(counts, sums)
			for k := range codes {
				if n := length(b.vectors[k*dim:][:dim]); math.Abs(n-1) > 1e-6 {
					t.Fatalf("code %d has length %v", k, n)
				}
			}
		}
	})
}

func TestQuantiserChecks(t *testing.T) {
	for _, k := range []struct {
		want string
		set  func(c *Config)
	}{
		{`model: quantizer: "vq" (want ema, cosine, fsq or residual)`, func(c *Config) { c.Quantizer = "vq" }},
		{"model: levels: [8 5] are those of quantizer: fsq, but it is ema", func(c *Config) { c.Levels = []int{8, 5} }},
		{"model: levels: [8 5] are those of quantizer: fsq, but it is residual", func(c *Config) { c.Quantizer, c.Levels = Residual, []int{8, 5} }},
		{"model: levels: quantizer: fsq wants some, such as", func(c *Config) { c.Quantizer = FSQ }},
		{"model: levels: 1 (want at least 2)", func(c *Config) { c.Quantizer, c.Levels = FSQ, []int{8, 1} }},
		{"model: levels: [4096 4096] make more than 1048576 codes", func(c *Config) { c.Quantizer, c.Levels = FSQ, []int{4096, 4096} }},
		{"model: embedding: 4, but levels are [4 4]: there are 2; leave it out", func(c *Config) { c.Quantizer, c.Levels = FSQ, []int{4, 4} }},
		{"model: codes: 17, but levels are [4 4]: their product is 16; leave it out", func(c *Config) {
			c.Quantizer, c.Levels, c.Embedding, c.Codes = FSQ, []int{4, 4}, 2, 17
		}},
	} {
		c, o := tiny()
		k.set(&c)
		e := cpu.New(1)
		if _, err := PlanFor(e, c, o); err == nil || !strings.HasPrefix(err.Error(), k.want) {
			t.Errorf("error %v, want %s…", err, k.want)
		}
		if _, err := PlanCoder(e, c, CoderOptions{Patch: o.Patch}); err == nil || !strings.HasPrefix(err.Error(), k.want) {
			t.Errorf("coder: error %v, want %s…", err, k.want)
		}
		_ = e.Close()
	}
	c := Config{Quantizer: FSQ, Levels: []int{8, 5, 5, 5}, Embedding: 8, Codes: 512}
	if err := c.Settle(func(string) bool { return false }); err != nil || c.Embedding != 4 || c.Codes != 1000 {
		t.Errorf("embedding %d, codes %d: %v", c.Embedding, c.Codes, err)
	}
}

func TestModelsOfBeforeTheQuantisers(t *testing.T) {
	const before = `{"hidden":4,"downsample":[4,4,2],"embedding":4,"codes":16,"norm":"channel","groups":4,"padding":"replicate","decoder":"lean"}`
	old, err := ParseConfig(before)
	if err != nil || old.Quantizer != EMA {
		t.Fatalf("%+v: %v", old, err)
	}
	size := [3]int{12, 8, 6}
	c, _ := tiny()
	prints := map[string]string{}
	for name, model := range tinies() {
		if name == FSQ {
			continue
		}
		weights := drawn(t, c, 1)
		book := weights[len(weights)-1]
		for k := range c.Codes {
			project(book.Data[k*c.Embedding:][:c.Embedding], book.Data[k*c.Embedding:][:c.Embedding])
		}
		weights = append(weights, Array{Name: "codebook2.embeddings", Shape: book.Shape, Data: book.Data})
		prints[name] = openCoder(t, model, weights, false, CoderOptions{Patch: size}).Fingerprint()
	}
	if prints[EMA] == prints[Cosine] || prints[EMA] == prints[Residual] || prints[Cosine] == prints[Residual] {
		t.Errorf("fingerprints %v", prints)
	}
	// As it was when there was no choice.
	if got, want := openCoder(t, old, drawn(t, old, 1), false, CoderOptions{Patch: size}).Fingerprint(), "0da3aa0a1d5fba0603363438528c235f7aee5e9cb1d539d904150ecb09873edc"; got != want {
		t.Errorf("fingerprint %s (want %s)", got, want)
	}
}

func TestCosineWantsUnitVectors(t *testing.T) {
	c := tinies()[Cosine]
	_, o := tiny()
	weights := drawn(t, c, 1)
	e := cpu.New(1)
	defer func() { _ = e.Close() }()
	const want = "weights: codebook.embeddings: code 0 has length "
	if _, err := OpenCoder(e, c, weights, false, CoderOptions{Patch: o.Patch}); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v (want %s…)", err, want)
	}
	if err := open(t, c, o, 1).LoadWeights(weights, false); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v (want %s…)", err, want)
	}
}

// A run's weights begin another one: with a codebook's statistics, and both codebooks of a residual quantiser.
func TestEveryQuantisersWeightsBeginARun(t *testing.T) {
	for name, c := range tinies() {
		_, o := tiny()
		s := open(t, c, o, 1)
		for i := range 12 {
			step(t, s, uint64(i), 2)
		}
		from := state(t, s)
		next := open(t, c, o, 1)
		if err := next.LoadWeights(from, false); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		x := smooth(o.Patch, 1, 5)
		a, b := make([]float32, len(x)), make([]float32, len(x))
		if err := s.Reconstruct(a, x, 1, false, nil); err != nil {
			t.Fatal(err)
		}
		if err := next.Reconstruct(b, x, 1, false, nil); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(bitsOf(a), bitsOf(b)) {
			t.Errorf("%s: other voxels", name)
		}
		shapes := map[string][]int{}
		for _, a := range from {
			prefix, _, _ := strings.Cut(a.Name, ".")
			if prefix != "ema" && prefix != "adam" && prefix != "session" && !strings.HasSuffix(a.Name, suffixPool) && !strings.HasSuffix(a.Name, suffixFar) {
				shapes[a.Name] = a.Shape
			}
		}
		if err := c.Match(shapes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		o2, err := ReadOutline(shapes)
		if err != nil || o2.Books != c.Books() || o2.Embedding != c.Embedding || o2.Books > 0 && o2.Codes != c.Codes {
			t.Errorf("%s: %+v, %v", name, o2, err)
		}
	}
}
