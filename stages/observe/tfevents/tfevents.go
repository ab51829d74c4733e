// Package tfevents writes event files, which TensorBoard opens.
//
// An event file is a sequence of records: the length of the data, its checksum, the data, and their checksum. All numbers
// are little-endian; checksums are CRC-32C, turned by 15 bits and with a constant added, so that a checksum of data that
// holds checksums means something (tensorflow/core/lib/io/record_writer.h). The data are protocol buffers of type Event
// (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto); only the fields that are written have a name
// here.
package tfevents

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	_ "image/png" // for the size of pictures
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of Event, Summary, Summary.Value, Summary.Image, HistogramProto and SessionLog.
const (
	eventTime, eventStep, eventVersion, eventSummary, eventSession protowire.Number = 1, 2, 3, 5, 7

	summaryValue protowire.Number = 1

	valueTag, valueSimple, valueImage, valueHistogram protowire.Number = 1, 2, 4, 5

	imageHeight, imageWidth, imageColours, imageData protowire.Number = 1, 2, 3, 4

	histogramMin, histogramMax, histogramNum, histogramSum, histogramSquares, histogramLimits, histogramCounts protowire.Number = 1, 2, 3, 4, 5, 6, 7

	sessionStatus protowire.Number = 1
)

const (
	version      = "brain.Event:2"
	sessionStart = 1
	rgb          = 3
)

// Scalar is a value by its name. Parts of names are parted by /.
type Scalar struct {
	Tag   string
	Value float64
}

// Writer writes one event file. One goroutine at a time may use it. What an error kept out of the file leaves no trace there.
type Writer struct {
	f interface {
		io.WriteCloser
		Truncate(size int64) error
	}
	size int64
}

// Create makes an event file in dir for a run that goes on behind a step, 0 for a new one: TensorBoard then drops what
// earlier files there say of later steps.
func Create(dir string, now time.Time, step int) (*Writer, error) {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	host = strings.Map(func(r rune) rune {
		if r == '/' || r == filepath.Separator || r < ' ' {
			return '_'
		}
		return r
	}, host)
	path := filepath.Join(dir, fmt.Sprintf("events.out.tfevents.%010d.%s.%d", now.Unix(), host, os.Getpid()))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	w := &Writer{f: f, size: size}
	if err == nil {
		err = w.event(now, 0, eventVersion, []byte(version))
	}
	if err == nil {
		err = w.event(now, step+1, eventSession, number(nil, sessionStatus, sessionStart))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return w, nil
}

// Close closes the file.
func (w *Writer) Close() error { return w.f.Close() }

// Scalars adds values of a step. TensorBoard knows no NaN: values that aren't finite are left out.
func (w *Writer) Scalars(now time.Time, step int, values []Scalar) error {
	var summary []byte
	for _, v := range values {
		if math.IsNaN(v.Value) || math.IsInf(v.Value, 0) {
			continue
		}
		value := text(nil, valueTag, v.Tag)
		value = protowire.AppendTag(value, valueSimple, protowire.Fixed32Type)
		value = protowire.AppendFixed32(value, math.Float32bits(float32(v.Value)))
		summary = message(summary, summaryValue, value)
	}
	if summary == nil {
		return nil
	}
	return w.event(now, step, eventSummary, summary)
}

// Image adds a PNG.
func (w *Writer) Image(now time.Time, step int, tag string, png []byte) error {
	c, _, err := image.DecodeConfig(bytes.NewReader(png))
	if err != nil {
		return fmt.Errorf("%s: %w", tag, err)
	}
	m := number(nil, imageHeight, uint64(c.Height))
	m = number(m, imageWidth, uint64(c.Width))
	m = number(m, imageColours, rgb)
	m = message(m, imageData, png)
	return w.value(now, step, tag, valueImage, m)
}

// buckets is the most that Histogram writes.
const buckets = 128

// Histogram adds how often each of the values 0, 1, 2 … came up, in buckets as wide as each other.
func (w *Writer) Histogram(now time.Time, step int, tag string, counts []int64) error {
	var num, sum, squares float64
	least, most := -1, 0
	for i, n := range counts {
		if n <= 0 {
			continue
		}
		if least < 0 {
			least = i
		}
		most = i
		num += float64(n)
		sum += float64(n) * float64(i)
		squares += float64(n) * float64(i) * float64(i)
	}
	if least < 0 {
		return nil
	}
	wide := (len(counts) + buckets - 1) / buckets
	var limits, each []byte
	for from := 0; from < len(counts); from += wide {
		until := min(from+wide, len(counts))
		var n int64
		for _, c := range counts[from:until] {
			n += max(0, c)
		}
		limits = protowire.AppendFixed64(limits, math.Float64bits(float64(until)-0.5)) // a bucket holds what is below its limit
		each = protowire.AppendFixed64(each, math.Float64bits(float64(n)))
	}
	var h []byte
	for field, x := range []float64{histogramMin: float64(least), histogramMax: float64(most), histogramNum: num, histogramSum: sum, histogramSquares: squares} {
		if field > 0 {
			h = double(h, protowire.Number(field), x)
		}
	}
	h = message(h, histogramLimits, limits)
	h = message(h, histogramCounts, each)
	return w.value(now, step, tag, valueHistogram, h)
}

// value adds a summary of one value.
func (w *Writer) value(now time.Time, step int, tag string, field protowire.Number, m []byte) error {
	return w.event(now, step, eventSummary, message(nil, summaryValue, message(text(nil, valueTag, tag), field, m)))
}

// event adds an Event that has one thing to say.
func (w *Writer) event(now time.Time, step int, field protowire.Number, m []byte) error {
	e := double(nil, eventTime, float64(now.UnixMicro())/1e6)
	if step > 0 { // 0 is what is meant where there is none
		e = number(e, eventStep, uint64(step))
	}
	return w.record(message(e, field, m))
}

// record adds a record, or nothing.
func (w *Writer) record(data []byte) error {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, len(data)+16), uint64(len(data)))
	b = binary.LittleEndian.AppendUint32(b, masked(b))
	b = append(b, data...)
	b = binary.LittleEndian.AppendUint32(b, masked(data))
	n, err := w.f.Write(b)
	if err != nil {
		if n > 0 {
			_ = w.f.Truncate(w.size)
		}
		return err
	}
	w.size += int64(n)
	return nil
}

// masked is the checksum of b as records hold it.
func masked(b []byte) uint32 {
	c := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return (c>>15 | c<<17) + 0xa282ead8
}

func double(b []byte, field protowire.Number, x float64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), math.Float64bits(x))
}

func number(b []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func text(b []byte, field protowire.Number, s string) []byte {
	return message(b, field, []byte(strings.ToValidUTF8(s, "�")))
}

func message(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}
