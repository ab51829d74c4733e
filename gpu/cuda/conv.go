//go:build cuda

package cuda

import (
	"fmt"
	"unsafe"

	"github.com/flowrun/flowrun/gpu"
	"gorgonia.org/cu"
)

// table is device memory for the boxes and runs of taps of convolutions, each written when it is first met. Programs are static, so that
// happens in their first run.
type table struct {
	at    uint64
	left  int64
	plans map[planKey]*convPlan
	tiles map[planKey]tile // of the card's own kernels
}

type planKey struct {
	c                  gpu.Conv
	forward, inRuns    bool
	samples, halo, per int
	rest               bool // all boxes but the first
}

// convPlan is a pass's boxes and runs of taps on the device.
type convPlan struct {
	boxes, runs  uint64
	count, tiles int
	most         int      // taps that a box has: borders that replicate may have more than the kernel
	thin         *thinBox // what the first box is, if it is one
}

// plan finds a plan, or makes it and has it written.
func (e *Engine) plan(key planKey) *convPlan {
	if p := e.tables.plans[key]; p != nil {
		return p
	}
	bs, runs, tiles := boxes(key.c, key.forward, key.samples, key.halo, key.per, key.inRuns)
	src := key.c.In
	if !key.forward {
		src = key.c.Out
	}
	thin := thinBoxOf(bs[0], runs, src.W+2*key.halo, src.H)
	if key.rest {
		first := bs[0].tiles(key.samples, key.per)
		bs, tiles = bs[1:], tiles-first
		for i := range bs {
			bs[i].Tile -= int32(first)
		}
	}
	p := &convPlan{count: len(bs), tiles: tiles, thin: thin}
	for _, b := range bs {
		p.most = max(p.most, int(b.Runs*b.Length))
	}
	if len(bs) > 0 {
		p.boxes, p.runs = put(e, bs), put(e, runs)
	}
	e.tables.plans[key] = p
	return p
}

// put has v written to the table.
func put[T any](e *Engine, v []T) uint64 {
	t := &e.tables
	bytes := int64(len(v)) * int64(unsafe.Sizeof(v[0]))
	at := t.at
	if t.left -= aligned(bytes); t.left < 0 {
		e.o.do(func() error { return fmt.Errorf("cuda: the table of convolutions is full (%d MiB)", tableBytes>>20) })
		return at
	}
	t.at += uint64(aligned(bytes))
	e.o.do(func() error {
		// v is pageable: it is copied before the call returns. On the stream of kernels, which doesn't wait for the default one.
		return failed("cuMemcpyHtoDAsync", cu.MemcpyHtoDAsync(cu.DevicePtr(at), unsafe.Pointer(&v[0]), bytes, e.compute))
	})
	return at
}

// convArgs is kernels/conv.cu's ConvArgs.
type convArgs struct {
	Src, Dst, Add                view
	S, T                         dims
	Weights, Bias, Boxes, Runs   uint64
	Count, Chunks, Padded, Tiled int32
}

// packArgs is kernels/conv.cu's PackArgs.
type packArgs struct {
	W, Out                   uint64
	Taps, K, N, StepK, StepN int32
	Chunks, Padded, Tiled    int32
}

// Of a block of plain convolutions: targets, groups of eight channels, and weights that it has room for.
const directTargets, directGroups, directKept = 128, 8, 4096

// narrowKernel is the channels of the kernel for so few, 0 where there is none.
func narrowKernel(channels int) int {
	switch {
	case channels == 1:
		return 1
	case channels <= 3:
		return 3
	}
	return 0
}

// PackConv packs weights.
func (e *Engine) PackConv(c gpu.Conv, w, packed, packedGrad gpu.Ptr) {
	ci, co := c.In.C, c.Out.C
	e.pack(c, e.at(w), e.at(packed), ci, co, co, 1)
	if packedGrad >= 0 {
		e.pack(c, e.at(w), e.at(packedGrad), co, ci, 1, co)
	}
}

func (e *Engine) pack(c gpu.Conv, w, out uint64, k, n, stepK, stepN int) {
	a := packArgs{W: w, Out: out, Taps: int32(c.Taps()), K: int32(k), N: int32(n), StepK: int32(stepK), StepN: int32(stepN)}
	a.Chunks, a.Padded, a.Tiled = tiling(c.Type, k, n)
	each := int64(4) // bytes that a thread makes
	if a.Tiled == 1 {
		each = 16
	}
	run(e, "pack", blocks(int(packedBytes(c.Type, c.Taps(), k, n)/each), 256), 256, a)
}

// tiling says how weights from k to n channels are packed.
func tiling(t gpu.Type, k, n int) (chunks, padded, tiled int32) {
	if t == gpu.Float32 {
		return 0, 0, 0
	}
	return int32(divUp(k, depth)), int32(roundUp(n, tileOf(n).n)), 1
}

// Conv writes y = conv(x) + bias + add.
func (e *Engine) Conv(c gpu.Conv, x gpu.Tensor, packed, bias gpu.Ptr, add *gpu.Tensor, y gpu.Tensor) {
	checkConv(c, x.Dims, y.Dims)
	same(y, add)
	e.convolve(c, x, packed, bias, add, y, true)
}

// ConvGradInput writes the gradient with respect to x.
func (e *Engine) ConvGradInput(c gpu.Conv, dy gpu.Tensor, packedGrad gpu.Ptr, dx gpu.Tensor) {
	checkConv(c, dx.Dims, dy.Dims)
	e.convolve(c, dy, packedGrad, -1, nil, dx, false)
}

func checkConv(c gpu.Conv, x, y gpu.Dims) {
	in, out := c.In, c.Out
	in.N, out.N = x.N, x.N
	if in != x || out != y {
		panic(fmt.Sprintf("cuda: convolution of %v to %v given %v and %v", c.In, c.Out, x, y))
	}
}

func (e *Engine) convolve(c gpu.Conv, src gpu.Tensor, packed, bias gpu.Ptr, add *gpu.Tensor, dst gpu.Tensor, forward bool) {
	if src.Halo < c.Halo() {
		panic(fmt.Sprintf("cuda: convolution wants a halo of %d, its operand has %d", c.Halo(), src.Halo))
	}
	a := convArgs{Src: e.view(src), Dst: e.view(dst), Add: e.viewOf(add), S: dimsOf(src.Dims), T: dimsOf(dst.Dims), Weights: e.at(packed), Bias: e.at(bias)}
	a.Chunks, a.Padded, a.Tiled = tiling(c.Type, src.C, dst.C)
	t := tileOf(dst.C)
	kernel, columns, key := fmt.Sprintf("conv%dx%d", t.m, t.n), divUp(dst.C, t.n), planKey{c: c, forward: forward, inRuns: true, samples: src.N, halo: src.Halo, per: t.m}
	if c.Type != gpu.BFloat16 || src.Type != gpu.BFloat16 {
		kernel, columns, key.per, key.inRuns = "convDirect", divUp(dst.C, 8*directGroups), directTargets, false
		if n := narrowKernel(dst.C); n > 0 && allWhole(src) && e.plan(key).most*src.C*n <= directKept {
			kernel = fmt.Sprintf("convNarrow%d", n)
		}
	}
	if e.own && kernel != "convDirect" && len(ownTiles[t.n]) > 0 {
		key.per = e.ownTile(key, t.n, columns, int(a.Chunks)).m
		kernel = fmt.Sprintf("conv%dx%dHopper", key.per, t.n)
	}
	p := e.plan(key)
	if kernel == "convDirect" && p.thin != nil && src.C == 1 && src.Type == gpu.Float32 && dst.Type == gpu.BFloat16 && add == nil {
		e.convThin(a, p.thin, src.N)
		key.rest = true
		if p = e.plan(key); p.count == 0 {
			return
		}
	}
	a.Boxes, a.Runs, a.Count = p.boxes, p.runs, int32(p.count)
	run(e, kernel, [3]int{p.tiles, columns, 1}, 256, a)
}

// weightArgs is kernels/weight.cu's WeightArgs.
type weightArgs struct {
	Shifted, Straight      view
	Q, P, Grid             dims
	From, K, S, Lo         [3]int32
	Stored, ClampQ, ClampP int32
	Steps, Share           int32
	Out, Bias              uint64
}

// gatherWeightsArgs is kernels/weight.cu's GatherWeightsArgs.
type gatherWeightsArgs struct {
	Parts, DW                                   uint64
	N, Rows, Columns, Taps, Wide, Q, P, Swapped int32
	K, S, Group                                 [2]int32 // along y and x
}

// biasArgs is kernels/weight.cu's BiasArgs.
type biasArgs struct {
	DY       view
	D        dims
	Parts    uint64
	Lanes, _ int32
}

// hopper is the threads of a block of Hopper's own kernel: four warps for each shift along x.
func (t weightTile) hopper() int { return 128 * t.group[1] }

func (t weightTile) kernel() string { return fmt.Sprintf("weight%dx%d", t.taps(), t.n) }

// ConvGradWeight adds to dw and db.
func (e *Engine) ConvGradWeight(c gpu.Conv, x, dy gpu.Tensor, dw, db, workspace gpu.Ptr) {
	checkConv(c, x.Dims, dy.Dims)
	c.In.N, c.Out.N = x.N, x.N
	if t := thinGradOf(c); t != nil && x.Type != dy.Type && x.Type == c.Type {
		e.thinGradWeight(c, t, x, dy, dw, db, workspace)
		return
	}
	w := weightGrid(c)
	shifted, straight := x, dy
	a := weightArgs{Stored: 1, ClampQ: yes(c.Pad == gpu.Replicate), Out: e.at(workspace)}
	if c.Transposed {
		shifted, straight = dy, x
		a.Stored, a.ClampQ, a.ClampP = 0, 0, yes(c.Pad == gpu.Replicate)
	}
	a.Shifted, a.Straight, a.Q, a.P = e.view(shifted), e.view(straight), dimsOf(shifted.Dims), dimsOf(straight.Dims)
	a.Grid = dims{int32(x.N), int32(w.count[0]), int32(w.count[1]), int32(w.count[2]), 0}
	for i := range 3 {
		a.From[i], a.K[i], a.S[i], a.Lo[i] = int32(w.from[i]), int32(c.K[i]), int32(c.S[i]), int32(c.Lo[i])
	}
	rows := x.N * w.count[0] * w.count[1]
	g := gatherWeightsArgs{Parts: a.Out, DW: e.at(dw), Taps: int32(c.Taps()), Q: a.Q.C, P: a.P.C, Swapped: yes(c.Transposed),
		K: [2]int32(a.K[1:]), S: [2]int32(a.S[1:]), Group: [2]int32{1, 1}}
	var used int
	if c.Type == gpu.BFloat16 && x.Type == gpu.BFloat16 && dy.Type == gpu.BFloat16 {
		steps := rows * divUp(w.count[2], strip)
		share := divUp(steps, w.parts)
		a.Steps, a.Share = int32(steps), int32(share)
		g.N, g.Rows, g.Columns, g.Wide = int32(divUp(steps, share)), int32(w.rows()), int32(w.columns()), int32(roundUp(shifted.C, 8))
		g.Group = [2]int32{int32(w.tile.group[0]), int32(w.tile.group[1])}
		used = int(g.N) * w.floats()
		if !c.Transposed {
			a.Bias = a.Out + uint64(aligned(4*int64(used)))
		}
		kernel, threads := w.tile.kernel(), 256
		if _, ok := e.kernels[kernel+"Hopper"]; e.own && ok {
			kernel, threads = kernel+"Hopper", w.tile.hopper()
		}
		run(e, kernel, [3]int{w.tiles[0], w.tiles[1], int(g.N)}, threads, a)
	} else {
		share := divUp(rows, w.directParts)
		all := c.Taps() * c.In.C * c.Out.C
		a.Steps, a.Share = int32(rows), int32(share)
		g.N, g.Rows, g.Columns, g.Wide = int32(divUp(rows, share)), g.Taps*g.Q, g.P, g.Q
		used = int(g.N) * all
		run(e, "weightDirect", [3]int{divUp(all, 256), 1, int(g.N)}, 256, a)
	}
	run(e, "gatherWeights", blocks(c.Taps()*c.In.C*c.Out.C, 256), 256, g)
	if a.Bias != 0 {
		e.columns(a.Bias, e.at(db), int(g.N), w.columns(), dy.C, 0, 1, true)
		return
	}
	e.biasGrad(dy, db, a.Out+uint64(aligned(4*int64(used))))
}

// biasGrad adds Σ dy to db.
func (e *Engine) biasGrad(dy gpu.Tensor, db gpu.Ptr, sums uint64) {
	parts := sumParts(dy.Voxels())
	run(e, "biasSums", [3]int{parts, 1, 1}, 256, biasArgs{DY: e.view(dy), D: dimsOf(dy.Dims), Parts: sums, Lanes: int32(lanes(dy.C))})
	e.columns(sums, e.at(db), parts, dy.C, dy.C, 0, 1, true)
}

func yes(b bool) int32 {
	if b {
		return 1
	}
	return 0
}
