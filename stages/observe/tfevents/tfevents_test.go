package tfevents

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

// event is what a reader of the files finds in a record.
type event struct {
	time    float64
	step    uint64
	version string
	session uint64
	values  []value
}

type value struct {
	tag    string
	simple float32
	width  uint64
	height uint64
	image  []byte
	histo  map[protowire.Number]float64
	limits []float64
	counts []float64
}

var errTorn = errors.New("torn")

// records reads the data of whole records, and says what is wrong with the first that isn't.
func records(b []byte) (all [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 12 {
			return all, errTorn
		}
		n := binary.LittleEndian.Uint64(b)
		if binary.LittleEndian.Uint32(b[8:]) != masked(b[:8]) {
			return all, errors.New("the length's checksum differs")
		}
		if n > uint64(len(b)-12) || uint64(len(b)-12)-n < 4 {
			return all, errTorn
		}
		data := b[12 : 12+n]
		if binary.LittleEndian.Uint32(b[12+n:]) != masked(data) {
			return all, errors.New("the data's checksum differs")
		}
		all = append(all, data)
		b = b[16+n:]
	}
	return all, nil
}

// fields calls f with each field of a message: x is a number's bits, m the bytes of what has a length.
func fields(b []byte, f func(n protowire.Number, x uint64, m []byte) error) error {
	for len(b) > 0 {
		n, kind, used := protowire.ConsumeTag(b)
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		var x uint64
		var m []byte
		switch kind {
		case protowire.VarintType:
			x, used = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			x, used = protowire.ConsumeFixed64(b)
		case protowire.Fixed32Type:
			var y uint32
			y, used = protowire.ConsumeFixed32(b)
			x = uint64(y)
		case protowire.BytesType:
			m, used = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("field %d of kind %d", n, kind)
		}
		if used < 0 {
			return protowire.ParseError(used)
		}
		b = b[used:]
		if err := f(n, x, m); err != nil {
			return err
		}
	}
	return nil
}

func doubles(b []byte) (list []float64) {
	for ; len(b) >= 8; b = b[8:] {
		list = append(list, math.Float64frombits(binary.LittleEndian.Uint64(b)))
	}
	return list
}

func parse(data []byte) (e event, err error) {
	err = fields(data, func(n protowire.Number, x uint64, m []byte) error {
		switch n {
		case eventTime:
			e.time = math.Float64frombits(x)
		case eventStep:
			e.step = x
		case eventVersion:
			e.version = string(m)
		case eventSession:
			return fields(m, func(_ protowire.Number, x uint64, _ []byte) error { e.session = x; return nil })
		case eventSummary:
			return fields(m, func(_ protowire.Number, _ uint64, m []byte) error {
				v := value{histo: map[protowire.Number]float64{}}
				err := fields(m, func(n protowire.Number, x uint64, m []byte) error {
					switch n {
					case valueTag:
						v.tag = string(m)
					case valueSimple:
						v.simple = math.Float32frombits(uint32(x))
					case valueImage:
						return fields(m, func(n protowire.Number, x uint64, m []byte) error {
							switch n {
							case imageHeight:
								v.height = x
							case imageWidth:
								v.width = x
							case imageData:
								v.image = m
							}
							return nil
						})
					case valueHistogram:
						return fields(m, func(n protowire.Number, x uint64, m []byte) error {
							switch n {
							case histogramLimits:
								v.limits = doubles(m)
							case histogramCounts:
								v.counts = doubles(m)
							default:
								v.histo[n] = math.Float64frombits(x)
							}
							return nil
						})
					}
					return nil
				})
				e.values = append(e.values, v)
				return err
			})
		}
		return nil
	})
	return e, err
}

// events are those of a file, all of it whole.
func events(t *testing.T, path string) []event {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	data, err := records(b)
	check(t, err)
	var list []event
	for _, d := range data {
		e, err := parse(d)
		check(t, err)
		list = append(list, e)
	}
	return list
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// only is the path of the one file in a folder.
func only(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	if len(entries) != 1 {
		t.Fatalf("%d files", len(entries))
	}
	return filepath.Join(dir, entries[0].Name())
}

var moment = time.Unix(1700000000, 500000000)

// Every event file that TensorFlow writes begins with these 12 bytes: the length of its first record, and its checksum. Then
// come the time and the version.
func TestBytesOfTheHeader(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(dir, moment, 0)
	check(t, err)
	check(t, w.Close())
	b, err := os.ReadFile(only(t, dir))
	check(t, err)
	const want = "1800000000000000a37f4b22" + "09" + "00002040fc54d941" + "1a0d" + "627261696e2e4576656e743a32"
	if got := hex.EncodeToString(b[:36]); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// CRC-32C of "123456789" is e3069283; turned by 15 bits it is 2507c60d, and with a282ead8 added c78ab0e5.
	if got := masked([]byte("123456789")); got != 0xc78ab0e5 {
		t.Errorf("checksum %x", got)
	}
}

// A scalar by hand: field 1, the time; field 2, the step; field 5, the summary of one value: field 1, its tag; field 2, 0.5.
func TestBytesOfAScalar(t *testing.T) {
	var b buffer
	w := &Writer{f: &b}
	check(t, w.Scalars(time.Unix(2, 0), 300, []Scalar{{"a/b", 0.5}, {"nan", math.NaN()}, {"inf", math.Inf(-1)}}))
	data, err := records(b.Bytes())
	check(t, err)
	const want = "09" + "0000000000000040" + "10" + "ac02" + "2a" + "0c" + "0a" + "0a" + "0a" + "03" + "612f62" + "15" + "0000003f"
	if got := hex.EncodeToString(data[0]); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	check(t, w.Scalars(time.Unix(2, 0), 300, []Scalar{{"nan", math.NaN()}}))
	if w.size != int64(b.Len()) || len(data) != 1 {
		t.Errorf("%d bytes noted of %d", w.size, b.Len())
	}
}

// buffer is a file in memory.
type buffer struct{ bytes.Buffer }

func (b *buffer) Truncate(n int64) error { b.Buffer.Truncate(int(n)); return nil }
func (b *buffer) Close() error           { return nil }

func TestFile(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(dir, moment, 41)
	check(t, err)
	path := only(t, dir)
	if !regexp.MustCompile(`^events\.out\.tfevents\.1700000000\.[^/]+\.\d+$`).MatchString(filepath.Base(path)) {
		t.Errorf("named %s", path)
	}
	check(t, w.Scalars(moment, 42, []Scalar{{"train/loss", 0.25}, {"lr", 1e-4}}))
	var picture bytes.Buffer
	check(t, png.Encode(&picture, image.NewGray(image.Rect(0, 0, 7, 5))))
	check(t, w.Image(moment, 43, "sample", picture.Bytes()))
	check(t, w.Histogram(moment, 44, "codes", []int64{0, 2, 0, 3}))
	check(t, w.Histogram(moment, 44, "none", []int64{0, 0}))
	if err := w.Image(moment, 43, "sample", []byte("no picture")); err == nil || !strings.HasPrefix(err.Error(), "sample: ") {
		t.Errorf("got %v", err)
	}
	check(t, w.Close())
	e := events(t, path)
	if len(e) != 5 || e[0].version != version || e[0].time != 1700000000.5 {
		t.Fatalf("%+v", e)
	}
	if e[1].session != sessionStart || e[1].step != 42 {
		t.Errorf("what an earlier run said of step 42 isn't dropped: %+v", e[1])
	}
	if v := e[2].values; e[2].step != 42 || len(v) != 2 || v[0].tag != "train/loss" || v[0].simple != 0.25 || v[1].tag != "lr" || v[1].simple != 1e-4 {
		t.Errorf("%+v", e[2])
	}
	if v := e[3].values[0]; v.tag != "sample" || v.width != 7 || v.height != 5 || !bytes.Equal(v.image, picture.Bytes()) {
		t.Errorf("%+v", e[3])
	}
	v := e[4].values[0]
	if !slices.Equal(v.limits, []float64{0.5, 1.5, 2.5, 3.5}) || !slices.Equal(v.counts, []float64{0, 2, 0, 3}) {
		t.Errorf("limits %v, counts %v", v.limits, v.counts)
	}
	for field, want := range map[protowire.Number]float64{histogramMin: 1, histogramMax: 3, histogramNum: 5, histogramSum: 11, histogramSquares: 29} {
		if v.histo[field] != want {
			t.Errorf("field %d is %g, want %g", field, v.histo[field], want)
		}
	}
}

// Whatever the counts, a histogram has few buckets, ascending, and loses none.
func TestHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		counts := rapid.SliceOfN(rapid.Int64Range(0, 9), 1, 1000).Draw(t, "counts")
		counts[0]++
		var b buffer
		if err := (&Writer{f: &b}).Histogram(moment, 1, "h", counts); err != nil {
			t.Fatal(err)
		}
		data, err := records(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		e, err := parse(data[0])
		if err != nil {
			t.Fatal(err)
		}
		v := e.values[0]
		if len(v.limits) != len(v.counts) || len(v.limits) > buckets || !slices.IsSorted(v.limits) || v.limits[len(v.limits)-1] != float64(len(counts))-0.5 {
			t.Fatalf("%d limits, %d counts: %v", len(v.limits), len(v.counts), v.limits)
		}
		from := 0
		for i, limit := range v.limits {
			var n int64
			for ; from < len(counts) && float64(from) < limit; from++ {
				n += counts[from]
			}
			if v.counts[i] != float64(n) {
				t.Fatalf("bucket %d has %g, want %d", i, v.counts[i], n)
			}
		}
	})
}

// full is a file on a disk that has room for so many bytes.
type full struct {
	buffer
	room int
}

func (f *full) Write(b []byte) (int, error) {
	n := min(len(b), f.room)
	f.room -= n
	_, _ = f.Buffer.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestAFullDiskLeavesWholeRecords(t *testing.T) {
	for room := range 120 {
		f := &full{room: room}
		w := &Writer{f: f}
		var err error
		for step := 1; err == nil; step++ {
			err = w.Scalars(moment, step, []Scalar{{"a", 1}})
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		f.room = 1000
		check(t, w.Scalars(moment, 99, []Scalar{{"a", 2}}))
		data, err := records(f.Bytes())
		check(t, err)
		last, err := parse(data[len(data)-1])
		check(t, err)
		if last.step != 99 {
			t.Errorf("room for %d bytes: the last record is of step %d", room, last.step)
		}
	}
}

// What is written is read back, whatever the names and values; whatever is read, the reader takes no harm.
func FuzzRoundTrip(f *testing.F) {
	f.Add("train/loss", 0.5, 3, []byte{1, 2})
	f.Add("\xff/\x00", math.MaxFloat64, -1, []byte("\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22"))
	f.Fuzz(func(t *testing.T, tag string, x float64, step int, tail []byte) {
		var b buffer
		w := &Writer{f: &b}
		check(t, w.Scalars(moment, step, []Scalar{{tag, x}}))
		check(t, w.Scalars(moment, 1, []Scalar{{"end", 1}}))
		whole := b.Len()
		_, _ = io.Copy(&b, bytes.NewReader(tail))
		data, _ := records(b.Bytes())
		for _, d := range data {
			_, _ = parse(d)
		}
		data, err := records(b.Bytes()[:whole])
		check(t, err)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			if len(data) != 1 {
				t.Fatalf("%d records", len(data))
			}
			return
		}
		e, err := parse(data[0])
		check(t, err)
		if v := e.values[0]; v.tag != strings.ToValidUTF8(tag, "�") || v.simple != float32(x) || e.step != uint64(max(0, step)) {
			t.Errorf("%q %g at %d became %+v at %d", tag, x, step, v, e.step)
		}
	})
}
