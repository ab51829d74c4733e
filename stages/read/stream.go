package read

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/flowrun/flowrun/stages/volume"
)

// Streams says whether a scan can be read as a stream: its file holds its slices one after the other, from the lowest z
// up. In x and y it may run any way. A scan with a cache is read from that.
func Streams(scan *volume.Scan, o Options) bool { return scan.Rising && o.Cache == "" }

// StreamCost is the most bytes of memory that a volume of Stream holds.
func StreamCost(scan *volume.Scan, o Options, slices int) int64 {
	var r *resampling
	if o.resample() {
		if f, p, err := open(scan, &o); err == nil { // else Stream will say what is wrong
			_ = f.Close()
			r = newResampling(p, &o)
		}
	}
	cost := buffers + held(scan, room(scan, r, slices))
	if r != nil {
		cost += r.bytes()
	}
	return cost
}

// held is the memory of so many slices, and of the one that is being decoded.
func held(scan *volume.Scan, slices int) int64 {
	return 2 * int64(scan.Dims[0]) * int64(scan.Dims[1]) * int64(min(slices+1, scan.Dims[2]))
}

// aheadSlices and aheadBytes bound what is decoded before it is asked for. One slice is.
const (
	aheadSlices = 16
	aheadBytes  = 8 << 20
)

// room is how many slices a stream keeps so that the last ones that were asked for are among them, and those that are decoded
// ahead.
func room(scan *volume.Scan, r *resampling, slices int) int {
	plane := 2 * scan.Dims[0] * scan.Dims[1]
	slices = max(slices, 1) + min(max(aheadBytes/plane, 1), aheadSlices)
	if r != nil {
		slices += r.burst()
	}
	return min(slices, scan.Dims[2])
}

// Tell is told what happens in the first reading of a stream. Each may be nil.
type Tell struct {
	Odd  func(warnings []string) // at its end: what is odd about the voxels
	Wait func() (over func())    // somebody waits, until over, for a slice that isn't decoded yet
}

// Stream opens a scan for which Streams is true. Its volume decodes slices a few ahead of those that are asked for, the first ones
// at once, and keeps the last ones: when slice z has been asked for, those above z-slices can be had. A slice below them is
// had too, by reading the file once more.
//
// The file is verified as it is read, all of it before its last slice is given; an error, which names the scan's path, comes
// from Rows when what can't be read is asked for, and the volume is lost. What fails for a moment is read again, from the file's
// beginning. Decoding ends with ctx, and before the last reference is
// given back: free is Load's.
func Stream(ctx context.Context, scan *volume.Scan, epoch int, o Options, slices int, tell Tell, free func()) (*volume.Volume, error) {
	s, err := newStream(ctx, scan, o, slices, tell)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if free != nil {
			free()
		}
		return nil, err
	}
	l := s.loader
	v := &volume.Volume{Scan: scan, Epoch: epoch, Dims: scan.Dims, Window: o.WindowHU, Geometry: l.p.geometry, Slope: l.slope, Inter: l.inter,
		Warnings: l.p.warnings}
	s.window.Lock()
	defer s.window.Unlock()
	s.start()
	return v.Own(s, free), nil
}

// stream is Samples of a file that is read forwards, behind which the last slices are kept. All is decoded by one goroutine at a
// time, which never waits for who asks: it runs while there is room ahead, and is started anew when there is some again.
type stream struct {
	ctx    context.Context // ends when the stream is closed
	cancel context.CancelFunc
	scan   *volume.Scan
	o      Options
	slices int // that are kept below the highest that was asked for
	burst  int // the most slices that decoding gives at a time
	tell   Tell

	// The goroutine's; nobody else's while it runs.
	loader     *loader // nil once the file is read to its end, and after a failure that may pass
	at         int     // the slice that it gives next; those that are there are passed over
	tries      tries
	failed     error // the last that was tried again
	resampling *resampling
	spare      []int16 // the slice being decoded

	window    sync.RWMutex // guards what follows
	news      *sync.Cond   // of low and high, and of err
	ring      [][]int16    // slice z is at z%len(ring)
	low, high int          // low ≤ z < high are there
	top       int          // one above the highest that was asked for, in this reading
	again     bool         // a slice below low was asked for
	err       error        // for good
	panicked  bool         // with err
	running   bool         // the goroutine
	decoding  sync.WaitGroup
}

func newStream(ctx context.Context, scan *volume.Scan, o Options, slices int, tell Tell) (*stream, error) {
	s := &stream{scan: scan, o: o, slices: max(slices, 1), burst: 1, tell: tell}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.news = sync.NewCond(&s.window)
	err := s.begin()
	for s.tries.again(s.ctx, err) {
		s.failed, err = err, s.begin()
	}
	if err != nil {
		s.cancel()
		return nil, err
	}
	if s.resampling != nil {
		s.burst = s.resampling.burst()
	}
	s.ring = make([][]int16, room(scan, s.resampling, slices))
	return s, nil
}

// begin opens the file.
func (s *stream) begin() error {
	r, p, err := open(s.scan, &s.o)
	if err != nil {
		return fmt.Errorf("%s: %w", s.scan.Path, err)
	}
	s.loader, s.at = newLoader(r, p, &s.o), 0
	if p.geometry.Resample {
		s.resampling = newResampling(p, &s.o)
	}
	return nil
}

// Rows fills buf.
func (s *stream) Rows(z, y0, y1 int, buf []int16) ([]int16, error) {
	if z < 0 || z >= s.scan.Dims[2] {
		return nil, fmt.Errorf("%s: there is no slice %d", s.scan.Path, z)
	}
	w := s.scan.Dims[0]
	buf = buf[:(y1-y0)*w]
	for !s.kept(z, y0*w, buf) {
		if err := s.await(z); err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// kept copies from a slice, if it is there and doesn't make room for more ahead.
func (s *stream) kept(z, at int, buf []int16) bool {
	s.window.RLock()
	defer s.window.RUnlock()
	if !s.has(z) || z >= s.top {
		return false
	}
	copy(buf, s.ring[z%len(s.ring)][at:])
	return true
}

func (s *stream) has(z int) bool { return s.low <= z && z < s.high }

// await asks for slice z and waits until it is there, for now.
func (s *stream) await(z int) error {
	s.window.Lock()
	defer s.window.Unlock()
	waits := false
	for {
		s.top = max(s.top, z+1)
		if z < s.low {
			s.again, s.tell.Wait = true, nil
		}
		s.start()
		switch {
		case s.has(z):
			return nil
		case s.panicked:
			panic(s.err)
		case s.err != nil:
			return s.err
		}
		if s.tell.Wait != nil && !waits {
			waits = true
			defer s.tell.Wait()()
		}
		s.news.Wait()
	}
}

// start has slices decoded as far as there is room. It wants the window locked.
func (s *stream) start() {
	if s.running || !s.due() {
		return
	}
	s.running = true
	s.decoding.Go(func() {
		for s.next() {
		}
	})
}

// due says that there is something to decode and room for it. It wants the window locked.
func (s *stream) due() bool {
	all := s.scan.Dims[2]
	return s.err == nil && (s.again || s.high < all && min(s.high+s.burst, all) <= len(s.ring)+max(s.top-s.slices, 0))
}

// next decodes, if that is due. Where it panics, so does who asks for what isn't there.
func (s *stream) next() (more bool) {
	s.window.Lock()
	due, again := s.due(), s.again
	s.running = due
	s.window.Unlock()
	if !due {
		return false
	}
	defer func() {
		if p := recover(); p != nil {
			s.fail(fmt.Errorf("%v\n%s", p, debug.Stack()), true)
		}
		more = true
	}()
	step := s.decode
	switch {
	case again:
		step = s.rewind
	case s.loader == nil:
		step = s.begin
	}
	err := step()
	switch {
	case s.tries.again(s.ctx, err):
		_ = s.shut()
		s.failed = err
	case err != nil && s.ctx.Err() != nil:
		s.fail(s.ctx.Err(), false) // and not what might have passed
	case err != nil:
		s.fail(err, false)
	}
	return true
}

// fail keeps the first error.
func (s *stream) fail(err error, panicked bool) {
	s.window.Lock()
	defer s.window.Unlock()
	if s.err == nil {
		s.err, s.panicked = err, panicked
	}
	s.news.Broadcast()
}

// rewind makes the file's first slice the next one.
func (s *stream) rewind() error {
	_ = s.shut()
	s.window.Lock()
	s.low, s.high, s.top, s.again = 0, 0, 0, false
	s.news.Broadcast() // who waits asks again
	s.window.Unlock()
	return s.begin()
}

// decode takes in the file's next slice.
func (s *stream) decode() error {
	l := s.loader
	var err error
	if r := s.resampling; r != nil {
		err = l.resampled(s.ctx, r, func(_ int, samples []int16) error {
			s.place(r.put, &l.p.geometry).place(0, samples)
			return s.keep()
		})
	} else {
		plane := int64(s.scan.Dims[0]) * int64(s.scan.Dims[1])
		if err = l.block(s.ctx, s.place(l.p.grid.Dims, &l.p.geometry), plane); err == nil {
			err = s.keep()
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.scan.Path, err)
	}
	return nil
}

// place puts samples of one of the file's slices in spare. dims are the file's.
func (s *stream) place(dims [3]int, g *volume.Geometry) *placer {
	if s.spare == nil {
		s.spare = make([]int16, dims[0]*dims[1])
	}
	return newPlacer(s.spare, [3]int{dims[0], dims[1], 1}, g.Axes, g.Flip)
}

// keep makes spare the next slice that is there. The last one is only once the rest of the file has been verified.
func (s *stream) keep() error {
	if s.at == s.scan.Dims[2]-1 {
		if err := s.end(); err != nil {
			return err
		}
	}
	s.window.Lock()
	defer s.window.Unlock()
	if s.at++; s.at <= s.high {
		return nil
	}
	at := s.high % len(s.ring)
	s.ring[at], s.spare = s.spare, s.ring[at]
	s.high++
	s.low = max(s.low, s.high-len(s.ring))
	s.news.Broadcast()
	return nil
}

// end verifies the rest of the file and closes it.
func (s *stream) end() error {
	if err := s.loader.finish(s.ctx); err != nil {
		return err
	}
	w := s.loader.warnings()
	if s.failed != nil {
		w = append(w, readAgain(s.failed))
	}
	if s.tell.Odd != nil && len(w) > 0 {
		s.tell.Odd(w)
	}
	s.tell.Odd = nil
	return s.shut()
}

func (s *stream) shut() error {
	if s.loader == nil {
		return nil
	}
	r := s.loader.r
	s.loader = nil
	return r.Close()
}

// Bytes is the memory of the slices that are kept.
func (s *stream) Bytes() int64 { return held(s.scan, len(s.ring)) }

// Close ends decoding and drops the slices.
func (s *stream) Close() error {
	s.fail(errors.New("read after it was released"), false)
	s.cancel()
	s.decoding.Wait()
	s.window.Lock()
	defer s.window.Unlock()
	clear(s.ring)
	s.spare, s.low, s.high = nil, 0, 0
	return s.shut()
}
