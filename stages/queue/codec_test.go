package queue

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/flowrun/flowrun/stages/volume"
)

func TestPatchesComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := [3]int{rapid.IntRange(1, 5).Draw(t, "x"), rapid.IntRange(1, 5).Draw(t, "y"), rapid.IntRange(1, 5).Draw(t, "z")}
		s := ref(rapid.StringN(1, 20, -1).Draw(t, "name"), rapid.IntRange(0, 9).Draw(t, "epoch"), 10, rapid.IntRange(0, 99).Draw(t, "scans"))
		s.Attempt = rapid.IntRange(0, 2).Draw(t, "attempt")
		tiles := rapid.IntRange(1, 60).Draw(t, "tiles")
		p := &Patch{Run: "run_1", Tile: rapid.IntRange(0, tiles-1).Draw(t, "tile"), Tiles: tiles, Size: size, Origin: [3]int{1, 2, 3}, Window: [2]float64{-1000.25, 1000},
			Slope: rapid.Float64Range(-3, 3).Draw(t, "slope"), Inter: rapid.Float64Range(-2000, 2000).Draw(t, "inter"), Source: s,
			Ops:     []volume.Op{{Flip: [3]bool{true, false, true}, Turns: 3, Scale: rapid.Float64Range(0.5, 2).Draw(t, "scale"), Shift: 0.1, Noise: 3, Key: rapid.Uint64().Draw(t, "key")}},
			Samples: rapid.SliceOfN(rapid.Int16(), size[0]*size[1]*size[2], size[0]*size[1]*size[2]).Draw(t, "samples")}
		if rapid.Bool().Draw(t, "void") {
			p = &Patch{Run: "run_1", Tile: -1, Source: s, Void: "a.nii: ends\nearly"}
		}
		m, err := p.encode(names{"run_1"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodePatch(m.Header, append([]byte{0}, m.Data...)[1:]) // at an odd address
		if err != nil {
			t.Fatal(err)
		}
		if head := m.Size() - len(m.Data) - len(m.Subject); p.Void == "" && head%2 != 0 {
			t.Fatalf("samples at %d", head)
		}
		if p.Void != "" {
			p.Void = "a.nii: ends early"
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, want %+v", got, p)
		}
	})
}

func TestDamagedPatchesAreRefused(t *testing.T) {
	for name, harm := range map[string]func(m *nats.Msg){
		"a bit of the body": func(m *nats.Msg) { m.Data[3] ^= 1 },
		"a body cut short":  func(m *nats.Msg) { m.Data = m.Data[:len(m.Data)-2] },
		"another shape":     func(m *nats.Msg) { m.Header.Set(shapeHeader, "2,8,4") }, // as many bytes, but see below
		"a huge shape":      func(m *nats.Msg) { m.Header.Set(shapeHeader, "1048576,1048576,1048576") },
		"no digest":         func(m *nats.Msg) { m.Header.Del(digestHeader) },
		"another schema":    func(m *nats.Msg) { m.Header.Set(schemaHeader, "flowrun.patch/2") },
		"another type":      func(m *nats.Msg) { m.Header.Set(dtypeHeader, "<f4") },
		"a tile too many":   func(m *nats.Msg) { m.Header.Set(tilesHeader, "1") },
		"another scan's id": func(m *nats.Msg) { m.Header.Set(idHeader, "t/0/0123456789abcdef/1") },
		"no source":         func(m *nats.Msg) { m.Header.Del(sourceHeader) },
		"no window":         func(m *nats.Msg) { m.Header.Set(patchHeader, `{"window_hu":[1,1],"slope":1}`) },
	} {
		m, err := patch(ref("a", 0, 1, 1), 1, 2).encode(names{"t"})
		if err != nil {
			t.Fatal(err)
		}
		harm(m)
		p, err := decodePatch(m.Header, m.Data)
		if name == "another shape" { // the trainer compares it with its own
			if err != nil || p.Size == patchSize {
				t.Errorf("%s: %v, %v", name, p, err)
			}
		} else if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzDecodePatch(f *testing.F) {
	for _, p := range []*Patch{patch(ref("a", 0, 1, 1), 1, 2), {Run: "t", Tile: -1, Source: ref("a", 0, 0, 0), Void: "why"}} {
		m, err := p.encode(names{"t"})
		if err != nil {
			f.Fatal(err)
		}
		h, err := json.Marshal(m.Header)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(h, m.Data)
	}
	f.Fuzz(func(t *testing.T, headers, body []byte) {
		h := nats.Header{}
		if json.Unmarshal(headers, &h) != nil {
			return
		}
		p, err := decodePatch(h, body)
		if err != nil {
			return
		}
		if p.Void == "" && (len(p.Samples) != p.Size[0]*p.Size[1]*p.Size[2] || p.Tile >= p.Tiles) {
			t.Fatalf("%+v", p)
		}
		if _, err := p.encode(names{p.Run}); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeScan(f *testing.F) {
	s := ref("a", 1, 2, 3)
	m, err := s.encode(names{"t"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Header.Get(idHeader), m.Data)
	f.Fuzz(func(t *testing.T, id string, body []byte) {
		s, err := decodeScan(nats.Header{schemaHeader: {scanSchema}, idHeader: {id}}, body)
		if err != nil {
			return
		}
		if got := s.ID("t"); got.Tile != -1 || s.check() != nil {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzParseLedger(f *testing.F) {
	l := NewLedger()
	for i := range 5 {
		if err := l.Mark(ID{Run: "t", Scan: Key("a"), Tile: i}, 9, 2); err != nil {
			f.Fatal(err)
		}
	}
	text, err := l.Encode("t")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseLedger(text, "t")
		if err != nil {
			return
		}
		again, err := l.Encode("t")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLedger(again, "t"); err != nil {
			t.Fatalf("%v: %s", err, again)
		}
	})
}

// A ledger is a set: the same marks in any order, some twice, through JSON at any place, give the same answers.
func TestLedgerIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scans := map[string]int{"a": rapid.IntRange(1, 20).Draw(t, "a"), "b": rapid.IntRange(1, 20).Draw(t, "b")}
		want := map[ID]bool{}
		l := NewLedger()
		for range rapid.IntRange(0, 60).Draw(t, "marks") {
			name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "scan")
			id := ID{Run: "t", Epoch: rapid.IntRange(0, 1).Draw(t, "epoch"), Scan: Key(name), Tile: rapid.IntRange(0, scans[name]-1).Draw(t, "tile")}
			want[id] = true
			if err := l.Mark(id, scans[name], 2); err != nil {
				t.Fatal(err)
			}
			if rapid.IntRange(0, 9).Draw(t, "json") == 0 {
				text, err := l.Encode("t")
				if err != nil {
					t.Fatal(err)
				}
				if l, err = ParseLedger(text, "t"); err != nil {
					t.Fatal(err)
				}
			}
		}
		for epoch := range 2 {
			n := 0
			for name, of := range scans {
				for i := range of {
					id := ID{Run: "t", Epoch: epoch, Scan: Key(name), Tile: i}
					if l.Has(id) != want[id] {
						t.Fatalf("%v: %v", id, l.Has(id))
					}
					if want[id] {
						n++
					}
				}
			}
			if whole := n == scans["a"]+scans["b"]; l.Whole(epoch) != whole {
				t.Fatalf("epoch %d: whole: %v", epoch, l.Whole(epoch))
			}
		}
		if err := l.Mark(ID{Run: "t", Epoch: 7, Scan: Key("a")}, 5, 2); err != nil {
			t.Fatal(err)
		}
		if err := l.Mark(ID{Run: "t", Epoch: 7, Scan: Key("a")}, 6, 2); err == nil {
			t.Fatal("a scan may have two numbers of tiles")
		}
	})
}

// A scan that is void counts once, whatever of it was done, and not at all once it is taken back.
func TestVoidScansInALedger(t *testing.T) {
	l := NewLedger()
	a := Key("a")
	mark := func(tile int) {
		t.Helper()
		if err := l.Mark(ID{Run: "t", Scan: a, Tile: tile}, 2, 2); err != nil {
			t.Fatal(err)
		}
	}
	mark(0)
	l.void(0, a, 2, true)
	mark(1)
	if l.Whole(0) {
		t.Error("one scan counts as two")
	}
	l.void(0, Key("b"), 2, true)
	if n, of := l.voids(0); !l.Whole(0) || n != 2 || of != 2 {
		t.Errorf("%d of %d void; whole: %v", n, of, l.Whole(0))
	}
	l.void(0, a, 2, false)
	l.unmark(ID{Run: "t", Scan: a, Tile: 1})
	if l.Whole(0) {
		t.Error("whole without a tile")
	}
}

func TestLedgersOfOthersAreRefused(t *testing.T) {
	for _, text := range []string{``, `{"version":2,"run":"t"}`, `{"version":1,"run":"other"}`, `{"version":1,"run":"t","epochs":{"0":{"by":{"0123456789abcdef":{"tiles":3,"done":"/w"}}}}}`} {
		if _, err := ParseLedger([]byte(text), "t"); err == nil {
			t.Errorf("%s: taken", text)
		}
	}
}

// A patch that reaches beyond the volume repeats its edge, as the batch stage does.
func TestCutRepeatsEdges(t *testing.T) {
	v := &volume.Volume{Scan: &volume.Scan{ID: "a"}, Dims: [3]int{2, 2, 2}, Slope: 2, Inter: 1, Window: [2]float64{0, 9}}
	v.Own(&volume.Memory{Data: []int16{0, 1, 2, 3, 4, 5, 6, 7}, Dims: v.Dims}, nil)
	p := &volume.Patch{Volume: v, Tag: volume.Tag{Scan: "a", Tiles: 1, Origin: [3]int{1, 0, 1}, Size: [3]int{2, 3, 2}}}
	m, err := Cut(p, "t", ref("a", 0, 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	if want := []int16{5, 5, 7, 7, 7, 7, 5, 5, 7, 7, 7, 7}; !reflect.DeepEqual(m.Samples, want) || m.Slope != 2 || m.Inter != 1 {
		t.Errorf("%+v", m)
	}
}

// Scans are files: an address is refused with what to do instead, and without the secret in it.
func TestAddressesOfScansAreRefused(t *testing.T) {
	for _, o := range []ListOptions{{From: []string{"data", "https://joe:geheim@pacs/a.nii.gz"}}, {From: []string{"s3://bucket/a.nii"}}, {Watch: "http://pacs/"}} {
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), "download it") || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []ListOptions{{From: []string{"data/**/*.nii.gz", "/a:b//c.nii"}}, {Watch: "incoming"}} {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{
		{Name: "a b"}, {Name: "a.b"}, {URL: "nats://user:geheim@host:4222"}, {URL: "host:4222"}, {URL: "nats://a:1,ftp://b"},
		{TLS: TLS{Cert: "c"}}, {URL: "nats://a:1", Server: Server{Listen: "127.0.0.1:1"}}, {Server: Server{Listen: "0.0.0.0:4222"}},
		{Server: Server{Listen: ":4222"}}, {Server: Server{Listen: "4222"}},
	} {
		err := o.Check()
		if err == nil {
			t.Errorf("%+v: taken", o)
		} else if strings.Contains(err.Error(), "geheim") {
			t.Error(err)
		}
	}
	for _, o := range []Options{{}, {Name: "ct_pa-2"}, {URL: "nats://a:1, tls://b:2"}, {Server: Server{Listen: "127.0.0.1:0"}}, {Server: Server{Listen: "0.0.0.0:1", Config: "x"}}} {
		if err := o.Check(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestSecretsAreRedacted(t *testing.T) {
	for _, text := range []string{`parse "nats://joe:geheim@host": invalid`, `user: joe, password: geheim`, `token=geheim`, `{"pass": "geheim"}`,
		"SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY", "eyJhbGciOiJlZDI1NTE5LW5rZXkiLCJ0eXAiOiJqd3QifQ.geheim"} {
		got := redact(text)
		for _, secret := range []string{"geheim", "SUAMK", "eyJ"} {
			if strings.Contains(got, secret) {
				t.Errorf("%s → %s", text, got)
			}
		}
	}
	if got := redact("nats: no servers available for connection to nats://host:4222"); got != "nats: no servers available for connection to nats://host:4222" {
		t.Error(got)
	}
}
