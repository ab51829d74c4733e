package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func deflate(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// kinds of data that exercise literals, long and short matches, long codes, stored blocks.
func sample(kind, n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		switch kind {
		case 0: // noise: stored
			b[i] = byte(r.Uint32())
		case 1: // CT: int16 with noise, high bytes few
			if i%2 == 0 {
				b[i] = byte(r.NormFloat64() * 12)
			} else {
				b[i] = byte(4 + r.IntN(2)*r.IntN(2))
			}
		case 2: // skewed: long codes
			b[i] = byte(r.ExpFloat64() * 7)
		case 3: // few symbols, long runs
			b[i] = byte(i / 977 % 3)
		case 4: // short periods: distances 1 to 9
			b[i] = byte(i % (1 + i/4096%9))
		case 5: // far matches
			if i >= 30000 {
				b[i] = b[i-30000+i/50000]
			} else {
				b[i] = byte(r.Uint32())
			}
		}
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.IntRange(0, 5).Draw(t, "kind")
		n := rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 400000)).Draw(t, "n")
		level := rapid.SampledFrom([]int{-2, 0, 1, 6, 9}).Draw(t, "level")
		want := sample(kind, n, rapid.Uint64().Draw(t, "seed"))
		var b bytes.Buffer
		w, _ := gzip.NewWriterLevel(&b, level)
		_, _ = w.Write(want)
		_ = w.Close()
		var src io.Reader = &b
		if rapid.Bool().Draw(t, "one byte at a time") && n < 20000 {
			src = iotest.OneByteReader(src)
		}
		got, err := io.ReadAll(NewReader(src))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("kind %d, level %d: %d bytes differ", kind, level, n)
		}
	})
}

// Long data, so that blocks, refills and the window's slides fall at many places.
func TestLong(t *testing.T) {
	for _, kind := range []int{1, 2} {
		want := sample(kind, 8<<20, 1)
		for _, level := range []int{1, 6} {
			got, err := io.ReadAll(NewReader(bytes.NewReader(deflate(t, want, level))))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("kind %d, level %d: %d bytes, %v", kind, level, len(got), err)
			}
		}
	}
}

func TestMembersAndWhatFollows(t *testing.T) {
	a, b := sample(1, 5000, 1), sample(5, 700000, 2)
	two := append(deflate(t, a, 6), deflate(t, b, 9)...)
	for _, c := range []struct {
		name  string
		tail  []byte
		after int64
	}{
		{"nothing", nil, 0},
		{"NULs", make([]byte, 70000), 0},
		{"text", []byte("hello"), 5},
		{"two bytes of a magic", []byte{0x1f, 0x8b}, 2},
		{"NULs, then text", append(make([]byte, 100000), 'x'), 100001},
	} {
		z := NewReader(bytes.NewReader(append(bytes.Clone(two), c.tail...)))
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(a), b...)) || z.After() != c.after {
			t.Errorf("%s: %d bytes, after %d, %v", c.name, len(got), z.After(), err)
		}
	}
}

// RFC 1951 §3.2.7: codes are complete, but for one of one bit, or none.
func TestBuild(t *testing.T) {
	for _, c := range []struct {
		lengths []uint8
		ok      bool
	}{
		{[]uint8{1, 1}, true}, {[]uint8{2, 1, 2}, true}, {[]uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15}, true},
		{[]uint8{0, 0}, true}, {[]uint8{0, 1, 0}, true}, {[]uint8{0, 2, 0}, false}, {[]uint8{15}, false},
		{[]uint8{1, 1, 1}, false}, {[]uint8{1, 2}, false}, {[]uint8{2, 2, 2}, false}, {[]uint8{1, 2, 2, 2}, false},
	} {
		var table distTable
		if ok := build(table[:], distRoot, c.lengths, distEntry); ok != c.ok {
			t.Errorf("%v: %v", c.lengths, ok)
		}
	}
}

// A member's matches may not reach into the one before it.
func TestMembersShareNothing(t *testing.T) {
	first := sample(1, 3000, 1)
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, 9, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(first); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	one := deflate(t, first, 6)
	two := append(bytes.Clone(one[:10]), b.Bytes()...)
	two = append(two, one[len(one)-8:]...) // the same bytes, so the same checksum and size
	if got, err := io.ReadAll(NewReader(bytes.NewReader(append(one, two...)))); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestHeaderFields(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("extra")
	_, _ = w.Write([]byte("data"))
	_ = w.Close()
	got, err := io.ReadAll(NewReader(&b))
	if err != nil || string(got) != "data" {
		t.Fatalf("%q, %v", got, err)
	}
}

// Every truncation is an error, and every flipped bit of data or trailer.
func TestBroken(t *testing.T) {
	for kind := range 6 {
		want := sample(kind, 3000, 7)
		whole := deflate(t, want, 6)
		for n := range whole {
			if _, err := io.ReadAll(NewReader(bytes.NewReader(whole[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("kind %d cut at %d of %d: %v", kind, n, len(whole), err)
			}
		}
		for i := 10; i < len(whole); i++ {
			bad := bytes.Clone(whole)
			bad[i] ^= 1 << (i % 8)
			if got, err := io.ReadAll(NewReader(bytes.NewReader(bad))); err == nil && !bytes.Equal(got, want) {
				t.Fatalf("kind %d: byte %d flipped unseen", kind, i)
			} else if i >= len(whole)-8 && !errors.Is(err, ErrChecksum) {
				t.Fatalf("kind %d: trailer byte %d: %v", kind, i, err)
			}
		}
	}
}

func TestSourceError(t *testing.T) {
	whole := deflate(t, sample(1, 200000, 3), 6)
	broken := errors.New("disk")
	src := io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(broken))
	if _, err := io.ReadAll(NewReader(src)); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

// FuzzInflate compares with compress/gzip: what one accepts so does the other, with the same bytes.
func FuzzInflate(f *testing.F) {
	for kind := range 6 {
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(deflate(f, sample(kind, 2000, 5), level))
		}
	}
	f.Add(append(deflate(f, []byte("one"), 1), deflate(f, nil, 1)...))
	// A trailer of which bytes were in the bit buffer when input was moved.
	f.Add([]byte("\x1f\x8b\b\x00\x00\x00\x00\x00\x02\xffb\x18\x05\xa3`\x14\f\x1f\xc08\nF\xc1(\x18>\x80\x89$\x00\b\x00\x00\xff\xff=\x9d\x9d\x9d\x9d\x9d\x9d\xf9\x80\x86\xd0\a\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 1 << 22
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(b)), most))
		slow, slowErr := io.ReadAll(io.LimitReader(NewReader(iotest.OneByteReader(bytes.NewReader(b))), most))
		if !errors.Is(err, slowErr) || err == nil && !bytes.Equal(got, slow) {
			t.Fatalf("%v, byte by byte %v", err, slowErr)
		}
		var want []byte
		src := bytes.NewReader(b)
		g, wantErr := gzip.NewReader(src)
		for wantErr == nil && len(want) < most {
			g.Multistream(false)
			var part []byte
			part, wantErr = io.ReadAll(io.LimitReader(g, int64(most-len(want))))
			want = append(want, part...)
			rest := b[len(b)-src.Len():]
			if len(want) == most || wantErr != nil || !bytes.HasPrefix(rest, []byte{0x1f, 0x8b, 8}) {
				break
			}
			wantErr = g.Reset(src)
		}
		if errors.Is(wantErr, gzip.ErrHeader) && err == nil && len(b) > 3 && b[3]&2 != 0 {
			return // a header's own checksum is not verified here: the data's is
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, compress/gzip says %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("bytes differ")
		}
	})
}

func BenchmarkCT(b *testing.B) {
	raw := sample(1, 32<<20, 1)
	whole := deflate(b, raw, 6)
	b.Run("inflate", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		b.ReportAllocs()
		for b.Loop() {
			if n, err := io.Copy(io.Discard, NewReader(bytes.NewReader(whole))); err != nil || n != int64(len(raw)) {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("compress-gzip", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			r, err := gzip.NewReader(bytes.NewReader(whole))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
