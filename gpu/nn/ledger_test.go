package nn

import (
	"fmt"

	"github.com/flowrun/flowrun/gpu"
)

// ledger is an engine that computes nothing and keeps books: which tensor lies where. An op that reads what isn't there any
// more, or writes over what it still reads, is a fault.
type ledger struct {
	gpu.Engine // nil: an op that isn't kept books of panics
	faults     []string
	lies       map[gpu.Ptr]entry
	size       int64
	calls      map[string]int
}

type entry struct {
	bytes int64
	what  string
}

func newLedger(size int64) *ledger {
	return &ledger{lies: map[gpu.Ptr]entry{}, size: size, calls: map[string]int{}}
}

func (l *ledger) Native() gpu.Type { return gpu.Float32 }
func (l *ledger) Bytes(d gpu.Dims, halo int, _ gpu.Type) int64 {
	return 4 * int64(d.N*d.D*d.H) * int64(d.W+2*halo) * int64(d.C)
}
func (l *ledger) ConvSizes(c gpu.Conv) gpu.ConvSizes {
	n := 4 * int64(c.Taps()*c.In.C*c.Out.C)
	return gpu.ConvSizes{Packed: n, PackedGrad: n + 4, Workspace: 3 * n}
}
func (l *ledger) NormStats(n gpu.Norm, d gpu.Dims) int64         { return 4 * int64(d.Voxels()) }
func (l *ledger) NormWork(n gpu.Norm, d gpu.Dims) int64          { return 8 * int64(d.C) }
func (l *ledger) QuantizeWork(k gpu.Quantizer, d gpu.Dims) int64 { return 4 * int64(k.Codes) }
func (l *ledger) LossWork(d gpu.Dims) int64                      { return 64 }
func (l *ledger) Sync() error                                    { return nil }
func (l *ledger) WriteTensor(dst gpu.Tensor, _ []float32) {
	l.write(l.bytes(dst), l.tensor(dst), dst.At)
}
func (l *ledger) bytes(t gpu.Tensor) int64   { return l.Bytes(t.Dims, t.Halo, t.Type) }
func (l *ledger) tensor(t gpu.Tensor) string { return fmt.Sprint(t.Dims, t.Halo) }
func (l *ledger) Write(dst gpu.Ptr, src []float32) {
	l.write(4*int64(len(src)), "numbers", dst)
}

// number says that a number of the run's is read.
func (l *ledger) number(op string, at gpu.Ptr) {
	for p, e := range l.lies {
		if p <= at && int64(at)+4 <= int64(p)+e.bytes && e.what == "numbers" {
			return
		}
	}
	l.fault("%s reads a number at %d, where none was written", op, at)
}
func (l *ledger) fault(format string, args ...any) {
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}
func (l *ledger) expect(op string, bytes int64, what string, at gpu.Ptr) {
	if e, ok := l.lies[at]; !ok || e.bytes != bytes || e.what != what {
		l.fault("%s reads %s at %d, where %q lies", op, what, at, e.what)
	}
}
func (l *ledger) read(op string, ts ...gpu.Tensor) {
	l.calls[op]++
	for _, t := range ts {
		l.expect(op, l.bytes(t), l.tensor(t), t.At)
	}
}
func (l *ledger) write(bytes int64, what string, at gpu.Ptr) {
	if at%gpu.Align != 0 {
		l.fault("%s of %d bytes at %d", what, bytes, at)
	}
	l.leave(bytes, what, at)
}

// leave is write of single numbers, which lie at 16 bytes.
func (l *ledger) leave(bytes int64, what string, at gpu.Ptr) {
	if at < 0 || int64(at)+bytes > l.size || at%16 != 0 {
		l.fault("%s of %d bytes at %d of %d", what, bytes, at, l.size)
	}
	for p, e := range l.lies {
		if int64(p) < int64(at)+bytes && int64(at) < int64(p)+e.bytes {
			delete(l.lies, p)
		}
	}
	l.lies[at] = entry{bytes, what}
}

// apart says that an output mustn't touch what its op reads.
func (l *ledger) apart(op string, out gpu.Tensor, in ...gpu.Tensor) {
	for _, t := range in {
		if int64(t.At) < int64(out.At)+l.bytes(out) && int64(out.At) < int64(t.At)+l.bytes(t) {
			l.fault("%s writes over what it reads, at %d", op, out.At)
		}
	}
}
func (l *ledger) put(ts ...gpu.Tensor) {
	for _, t := range ts {
		l.write(l.bytes(t), l.tensor(t), t.At)
	}
}

func (l *ledger) PackConv(c gpu.Conv, w, packed, packedGrad gpu.Ptr) {
	s := l.ConvSizes(c)
	l.write(s.Packed, "packed", packed)
	if packedGrad >= 0 {
		l.write(s.PackedGrad, "packedGrad", packedGrad)
	}
}
func (l *ledger) Conv(c gpu.Conv, x gpu.Tensor, packed, bias gpu.Ptr, add *gpu.Tensor, y gpu.Tensor) {
	l.read("conv", x)
	l.expect("conv", l.ConvSizes(c).Packed, "packed", packed)
	if x.Halo < c.Halo() || x.Dims != c.In || y.Dims != c.Out {
		l.fault("conv %+v of %+v", c, x)
	}
	if add != nil {
		l.read("conv add", *add)
		if add.At != y.At || add.Halo != y.Halo {
			l.apart("conv", y, *add)
		}
	}
	l.apart("conv", y, x)
	l.put(y)
}
func (l *ledger) ConvGradInput(c gpu.Conv, dy gpu.Tensor, packedGrad gpu.Ptr, dx gpu.Tensor) {
	l.read("grad input", dy)
	l.expect("grad input", l.ConvSizes(c).PackedGrad, "packedGrad", packedGrad)
	if dy.Halo < c.Halo() || dy.Pad != gpu.Zero || dy.Dims != c.Out || dx.Dims != c.In {
		l.fault("input gradient %+v of %+v", c, dy)
	}
	l.apart("grad input", dx, dy)
	l.put(dx)
}
func (l *ledger) ConvGradWeight(c gpu.Conv, x, dy gpu.Tensor, dw, db, workspace gpu.Ptr) {
	l.write(l.ConvSizes(c).Workspace, "workspace", workspace)
	l.read("grad weight", x, dy)
}
func (l *ledger) NormAct(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	l.read("norm", x)
	l.apart("norm", y, x)
	l.put(y)
	l.write(l.NormStats(n, x.Dims), "stats", stats)
}
func (l *ledger) NormActApply(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, y gpu.Tensor) {
	l.read("norm apply", x)
	l.expect("norm apply", l.NormStats(n, x.Dims), "stats", stats)
	l.apart("norm apply", y, x)
	l.put(y)
}
func (l *ledger) NormActGrad(n gpu.Norm, x gpu.Tensor, gamma, beta, stats gpu.Ptr, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor, dgamma, dbeta, workspace gpu.Ptr) {
	l.write(l.NormWork(n, x.Dims), "workspace", workspace)
	l.read("norm grad", x, dy)
	l.expect("norm grad", l.NormStats(n, x.Dims), "stats", stats)
	if dx.At != dy.At || dx.Halo != dy.Halo {
		l.apart("norm grad", dx, dy)
	}
	if add != nil {
		l.read("norm grad add", *add)
		if dx.At != add.At || dx.Halo != add.Halo {
			l.apart("norm grad", dx, *add)
		}
	}
	l.apart("norm grad", dx, x)
	l.put(dx)
}
func (l *ledger) Quantize(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, q gpu.Tensor, counts, sums, loss, workspace gpu.Ptr) {
	l.write(l.QuantizeWork(k, z.Dims), "workspace", workspace)
	l.read("quantize", z)
	l.apart("quantize", q, z)
	l.put(q)
	l.write(4*int64(z.Voxels()), "codes", idx)
	l.leave(4, "loss", loss)
}
func (l *ledger) QuantizeGrad(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, dq *gpu.Tensor, scale gpu.Ptr, dz gpu.Tensor) {
	l.read("quantize grad", z)
	if dq != nil {
		l.read("quantize grad", *dq)
	}
	l.number("quantize grad", scale)
	l.expect("quantize grad", 4*int64(z.Voxels()), "codes", idx)
	l.put(dz)
}
func (l *ledger) ReconLoss(y, t gpu.Tensor, l1, l2 float32, scale gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	l.write(l.LossWork(y.Dims), "workspace", workspace)
	l.read("loss", y, t)
	l.leave(16, "result", out)
	if dy != nil {
		l.number("loss", scale)
		l.apart("loss", *dy, t)
		l.put(*dy)
	}
}
func (l *ledger) Add(a, b, y gpu.Tensor) {
	l.read("add", a, b)
	for _, t := range []gpu.Tensor{a, b} {
		if t.At != y.At || t.Halo != y.Halo {
			l.apart("add", y, t)
		}
	}
	l.put(y)
}
