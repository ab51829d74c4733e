// Package cpu is the Engine on the CPU: float32, in Go and in Go assembly that avo generates (AVX-512 and AVX2, picked
// when the engine is made; plain Go elsewhere). It is also the reference that other engines are held to.
//
// Reading order: engine.go (the arena), pool.go (threads), plan.go and conv.go (a convolution as matrix products on
// shifted windows), weight.go (its weight gradient), then norm.go and normgo.go, quantize.go, loss.go and adam.go; and what a GAN adds:
// pointwise.go, planes.go (2D images of volumes), judge.go, perceptual.go, similarity.go (SSIM), unit.go and spectral.go.
// What a micro-kernel computes is said, in plain Go, in kernel.go.
//
// Bits. Work is cut into chunks by shape alone; threads only pick chunks. So one level (avx512, avx2, go) gives the same
// bits for any number of threads. Two levels round differently.
package cpu

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
)

// Engine is a gpu.Engine on the CPU. Use New or NewWith.
type Engine struct {
	level   *level
	threads int
	pool    *pool
	mem     []float32 // the arena
	free    func() error
	plans   plans
	scratch []scratch // of each thread
}

// scratch is what a thread hands to micro-kernels: on the stack it would escape.
type scratch struct {
	product product
	outer   outer
	norm    normGrad
	adam    adamStep
	loss    [4]float32
	sum     float32
	best    [8 * 16]float32 // of nearest: by row and lane
	at      [8 * 16]int32
	taps    []tap
	soon    [][]float32 // of weightPart
	part    weightPart
}

var _ gpu.Engine = (*Engine)(nil)

// New makes an engine with the fastest kernels that this CPU runs. threads ≤ 0 means GOMAXPROCS.
func New(threads int) *Engine {
	for _, l := range levels() {
		if l.ok {
			return open(l, threads)
		}
	}
	panic("cpu: no kernels") // the plain Go level is always there
}

// NewWith makes an engine with the kernels of one level, "avx512", "avx2" or "go", for who compares levels on one machine.
func NewWith(name string, threads int) (*Engine, error) {
	for _, l := range levels() {
		switch {
		case l.name != name:
		case !l.ok:
			return nil, fmt.Errorf("cpu: this processor can't run %s kernels", name)
		default:
			return open(l, threads), nil
		}
	}
	return nil, fmt.Errorf("cpu: no %s kernels in this build", name)
}

func open(l *level, threads int) *Engine {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return &Engine{level: l, threads: threads, pool: newPool(threads), plans: plans{by: map[planKey]*plan{}, limit: 4 << 20}, scratch: make([]scratch, threads)}
}

// Name is "cpu (AVX-512, 2 threads)".
func (e *Engine) Name() string {
	s := "s"
	if e.threads == 1 {
		s = ""
	}
	return fmt.Sprintf("cpu (%s, %d thread%s)", e.level.title, e.threads, s)
}

// Reserve maps the arena.
func (e *Engine) Reserve(bytes int64) error {
	if err := e.release(); err != nil || bytes == 0 {
		return err
	}
	b, free, err := mapArena(int(round(bytes, gpu.Align)))
	if err != nil {
		return fmt.Errorf("cpu: arena of %d bytes: %w", bytes, err)
	}
	e.mem, e.free = unsafe.Slice((*float32)(unsafe.Pointer(&b[0])), len(b)/4), free
	return nil
}

// release gives the arena back, if there is one.
func (e *Engine) release() error {
	if e.free == nil {
		return nil
	}
	free := e.free
	e.free, e.mem = nil, nil
	return free()
}

// Sync returns at once: every op has finished when it returns.
func (e *Engine) Sync() error { return nil }

// Close ends the threads and gives the arena back.
func (e *Engine) Close() error {
	e.pool.close()
	return e.release()
}

// floats is n floats of the arena at p.
func (e *Engine) floats(p gpu.Ptr, n int) []float32 {
	i := int(p) / 4
	return e.mem[i : i+n : i+n]
}

// ints is n int32 of the arena at p.
func (e *Engine) ints(p gpu.Ptr, n int) []int32 {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*int32)(unsafe.Pointer(&e.floats(p, n)[0])), n)
}

// doubles is n float64 of the arena at p.
func (e *Engine) doubles(p gpu.Ptr, n int) []float64 {
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*float64)(unsafe.Pointer(&e.floats(p, 2*n)[0])), n)
}

// grid is a tensor's storage: rows of (W + 2*halo)*C floats.
type grid struct {
	gpu.Tensor
	v   []float32
	row int // floats from one row to the next
}

func (e *Engine) grid(t gpu.Tensor) grid {
	row := (t.W + 2*t.Halo) * t.C
	return grid{t, e.floats(t.At, t.N*t.D*t.H*row), row}
}

// rows is the number of rows.
func (g grid) rows() int { return g.N * g.D * g.H }

// inner is row r without its halo.
func (g grid) inner(r int) []float32 {
	i := r*g.row + g.Halo*g.C
	n := g.W * g.C
	return g.v[i : i+n : i+n]
}

// strip is rows y0 ≤ y < y1 of a plane, with their halo.
func (g grid) strip(n, z, y0, y1 int) []float32 {
	return g.v[((n*g.D+z)*g.H+y0)*g.row:][:(y1-y0)*g.row]
}

// strides is how far apart neighbours along z, y and x are.
func (g grid) strides() [3]int { return [3]int{g.H * g.row, g.row, g.C} }

// at is the offset of a voxel.
func (g grid) at(n, z, y, x int) int {
	return ((n*g.D+z)*g.H+y)*g.row + (x+g.Halo)*g.C
}

// fillHalo writes the halo of row r.
func (g grid) fillHalo(r int) {
	h := g.Halo * g.C
	if h == 0 {
		return
	}
	row := g.v[r*g.row : (r+1)*g.row]
	lo, hi := row[:h], row[len(row)-h:]
	if g.Pad == gpu.Zero {
		clear(lo)
		clear(hi)
		return
	}
	for x := 0; x < h; x += g.C {
		copy(lo[x:x+g.C], row[h:])
		copy(hi[x:x+g.C], row[len(row)-h-g.C:len(row)-h])
	}
}

func same(a, b gpu.Tensor) {
	if a.Dims != b.Dims {
		panic(fmt.Sprintf("cpu: dims %v and %v differ", a.Dims, b.Dims))
	}
}

// eachRows calls f for chunks of rows of about 16k floats. The chunks depend on the shape only.
func (e *Engine) eachRows(d gpu.Dims, f func(s *scratch, chunk, r0, r1 int)) {
	rows, per := d.N*d.D*d.H, rowsPerChunk(d)
	e.pool.runOn(chunks(rows, per), func(thread, i int) { f(&e.scratch[thread], i, i*per, min((i+1)*per, rows)) })
}

func rowsPerChunk(d gpu.Dims) int { return max(1, chunkFloats/max(1, d.W*d.C)) }

// chunkFloats is what one chunk of an elementwise op holds: small enough to share among threads and to stay in L2.
const chunkFloats = 1 << 14

func chunks(n, per int) int { return (n + per - 1) / per }

func round(n, to int64) int64 { return (n + to - 1) / to * to }

func bytesOf(floats int) int64 { return round(4*int64(floats), gpu.Align) }

// Write copies src into the arena.
func (e *Engine) Write(dst gpu.Ptr, src []float32) { copy(e.floats(dst, len(src)), src) }

// Read copies from the arena.
func (e *Engine) Read(dst []float32, src gpu.Ptr) { copy(dst, e.floats(src, len(dst))) }

// Codes copies int32 from the arena.
func (e *Engine) Codes(dst []int32, src gpu.Ptr) { copy(dst, e.ints(src, len(dst))) }

// Fill sets n floats.
func (e *Engine) Fill(dst gpu.Ptr, n int, value float32) {
	v := e.floats(dst, n)
	e.pool.run(chunks(n, chunkFloats), func(i int) {
		part := v[i*chunkFloats : min((i+1)*chunkFloats, n)]
		if value == 0 && !math.Signbit(float64(value)) {
			clear(part)
			return
		}
		for j := range part {
			part[j] = value
		}
	})
}

// Upload is Write: an op has finished when it returns.
func (e *Engine) Upload(dst gpu.Ptr, src []float32) { e.Write(dst, src) }

// Store writes y from dense data.
func (e *Engine) Store(src gpu.Ptr, y gpu.Tensor) { e.WriteTensor(y, e.floats(src, y.Len())) }

// Copy copies n floats.
func (e *Engine) Copy(dst, src gpu.Ptr, n int) { copy(e.floats(dst, n), e.floats(src, n)) }

// Gather copies rows.
func (e *Engine) Gather(dst, src gpu.Ptr, width int, at gpu.Ptr, n int) {
	rows := e.ints(at, n)
	for i, r := range rows {
		copy(e.floats(dst+gpu.Ptr(4*i*width), width), e.floats(src+4*gpu.Ptr(r)*gpu.Ptr(width), width))
	}
}

// Native is gpu.Float32, the only type there is here.
func (e *Engine) Native() gpu.Type { return gpu.Float32 }

// Bytes is N*D*H*(W+2*halo)*C floats, rounded up to Align.
func (e *Engine) Bytes(d gpu.Dims, halo int, t gpu.Type) int64 {
	if t != gpu.Float32 {
		panic(fmt.Sprintf("cpu: a tensor of %v", t))
	}
	return bytesOf(d.N * d.D * d.H * (d.W + 2*halo) * d.C)
}

// WriteTensor stores src [N, D, H, W, C] and fills the halo.
func (e *Engine) WriteTensor(dst gpu.Tensor, src []float32) {
	g := e.grid(dst)
	if len(src) != dst.Len() {
		panic(fmt.Sprintf("cpu: %d floats for dims %v", len(src), dst.Dims))
	}
	n := g.W * g.C
	e.eachRows(dst.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			copy(g.inner(r), src[r*n:(r+1)*n])
			g.fillHalo(r)
		}
	})
}

// ReadTensor gives a tensor as [N, D, H, W, C].
func (e *Engine) ReadTensor(dst []float32, src gpu.Tensor) {
	g := e.grid(src)
	if len(dst) != src.Len() {
		panic(fmt.Sprintf("cpu: %d floats for dims %v", len(dst), src.Dims))
	}
	n := g.W * g.C
	e.eachRows(src.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			copy(dst[r*n:(r+1)*n], g.inner(r))
		}
	})
}
