package vqgan

import (
	"slices"
	"strings"
	"testing"
)

func TestResumedRunsEndInTheSameBits(t *testing.T) {
	for _, c := range []struct {
		stop, micro int
		norm        string
	}{{1, 2, "channel"}, {4, 1, "group"}, {13, 2, "channel"}} { // within the first draws of the codebook, and behind them
		config, o := tiny()
		config.Norm, o.MicroBatch = c.norm, c.micro
		o.Codebook.Decay, o.Codebook.Restart = 0.5, 4 // so that codes do restart
		whole := open(t, config, o, 2)
		var middle []Array
		restarts := 0
		for i := range 16 {
			if i == c.stop {
				middle = state(t, whole)
			}
			restarts += step(t, whole, uint64(i), 1+i%2).Restarted
		}
		if restarts == 0 {
			t.Error("no code restarted")
		}
		resumed := open(t, config, o, 1)
		step(t, resumed, 99, 2) // another past
		if err := resumed.SetState(middle, true); err != nil {
			t.Fatal(err)
		}
		for i := c.stop; i < 16; i++ {
			step(t, resumed, uint64(i), 1+i%2)
		}
		same(t, "resumed", state(t, whole), state(t, resumed))
	}
}

func TestStateRefusesWhatDoesNotFit(t *testing.T) {
	c, o := tiny()
	s := open(t, c, o, 1)
	step(t, s, 1, 2)
	good := state(t, s)
	step(t, s, 2, 2)
	before := state(t, s)
	change := func(f func(a []Array) []Array) []Array { return f(slices.Clone(good)) }
	for _, bad := range []struct {
		want   string
		arrays []Array
	}{
		{"encoder.conv_first.conv.weight is missing", change(func(a []Array) []Array { return a[1:] })},
		{"encoder.conv_first.conv.weight is [4] (want [4 1 3 3 3])", change(func(a []Array) []Array { a[0].Shape = []int{4}; return a })},
		{"extra is unknown", change(func(a []Array) []Array { return append(a, Array{Name: "extra"}) })},
		{"is there twice", change(func(a []Array) []Array { return append(a, a[0]) })},
		{"isn't a counter", change(func(a []Array) []Array { a[len(a)-1].Data = make([]float32, 12); a[len(a)-1].Data[1] = 0.5; return a })},
		{"and 2 more", change(func(a []Array) []Array { return a[6:] })},
	} {
		err := s.SetState(bad.arrays, true)
		if err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("error %v, want …%s…", err, bad.want)
		}
		same(t, bad.want, before, state(t, s))
	}
	// Without strict: running means begin at the weights.
	loose := slices.DeleteFunc(slices.Clone(good), func(a Array) bool { return strings.HasPrefix(a.Name, prefixAverage) })
	if err := s.SetState(append(loose, Array{Name: "extra"}), false); err != nil {
		t.Fatal(err)
	}
	for i, a := range state(t, s) {
		if name, ok := strings.CutPrefix(a.Name, prefixAverage); ok && !slices.Equal(a.Data, good[i-len(s.params.All())].Data) {
			t.Errorf("%s isn't the weight", name)
		}
	}
}

func TestLoadWeightsStartsANewRun(t *testing.T) {
	c, o := tiny()
	s := open(t, c, o, 1)
	for i := range 12 {
		step(t, s, uint64(i), 2)
	}
	from := state(t, s)
	x := smooth(o.Patch, 1, 4)
	for _, ema := range []bool{false, true} {
		want, got := make([]float32, len(x)), make([]float32, len(x))
		if err := s.Reconstruct(want, x, 1, ema, nil); err != nil {
			t.Fatal(err)
		}
		fresh := open(t, c, o, 1)
		if err := fresh.LoadWeights(from, ema); err != nil {
			t.Fatal(err)
		}
		if err := fresh.Reconstruct(got, x, 1, false, nil); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) || fresh.step != 0 {
			t.Errorf("ema %v: another reconstruction, or step %d", ema, fresh.step)
		}
		if stats := step(t, fresh, 3, 2); stats.Restarted != 0 {
			t.Errorf("%d codes restarted at once", stats.Restarted)
		}
	}
	o.Codebook.Restart = 0 // then counts are kept as they are
	kept := open(t, c, o, 1)
	if err := kept.LoadWeights(from, false); err != nil {
		t.Fatal(err)
	}
	counts := slices.IndexFunc(from, func(a Array) bool { return a.Name == nameN })
	if !slices.Equal(kept.levels[0].book.n, from[counts].Data) {
		t.Errorf("counts %v, want %v", kept.levels[0].book.n, from[counts].Data)
	}
	c.Codes = 32
	if err := open(t, c, o, 1).LoadWeights(from, false); err == nil || err.Error() != "weights: another model's: codebook.embeddings is [16 4] (want [32 4]), "+
		"codebook.N is [16] (want [32]), codebook.z_avg is [16 4] (want [32 4])" {
		t.Errorf("error %v", err)
	}
}
