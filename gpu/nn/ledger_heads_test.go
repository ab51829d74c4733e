package nn

import "github.com/flowrun/flowrun/gpu"

// over says that an output may lie where an operand does, laid out alike, but not across it.
func (l *ledger) over(op string, out gpu.Tensor, in ...gpu.Tensor) {
	for _, t := range in {
		if out.At != t.At || out.Halo != t.Halo {
			l.apart(op, out, t)
		}
	}
}

func (l *ledger) SimilarityWork(k gpu.Similarity, d gpu.Dims) int64 { return 8 * int64(d.Voxels()) }
func (l *ledger) SumSquaresWork(n int) int64                        { return 16 }
func (l *ledger) Fill(dst gpu.Ptr, n int, value float32)            { l.write(4*int64(n), "filled", dst) }

func (l *ledger) Combine(a, b gpu.Tensor, scale gpu.Ptr, y gpu.Tensor) {
	l.read("combine", a, b)
	l.expect("combine", 8, "lambda", scale-4)
	l.over("combine", y, a, b)
	l.put(y)
}
func (l *ledger) Balance(a, b gpu.Ptr, limit float32, factor, out gpu.Ptr) {
	l.number("balance", factor)
	l.expect("balance", 4, "squares", a)
	l.expect("balance", 4, "squares", b)
	l.leave(8, "lambda", out)
}
func (l *ledger) Copy(dst, src gpu.Ptr, n int) { l.leave(4*int64(n), "copied", dst) }
func (l *ledger) SumSquares(x gpu.Ptr, n int, out, workspace gpu.Ptr) {
	l.write(16, "workspace", workspace)
	l.write(4, "squares", out)
}
func (l *ledger) Subtract(a, b, y gpu.Tensor) {
	l.read("subtract", a, b)
	l.over("subtract", y, a, b)
	l.put(y)
}
func (l *ledger) Activate(slope float32, x, y gpu.Tensor) {
	l.read("activate", x)
	l.over("activate", y, x)
	l.put(y)
}

// grad keeps books of an op that writes dx from dy and what else it reads, plus add.
func (l *ledger) grad(op string, dy gpu.Tensor, overDy bool, add *gpu.Tensor, dx gpu.Tensor, reads ...gpu.Tensor) {
	l.read(op, append(reads, dy)...)
	l.apart(op, dx, reads...)
	if l.over(op, dx, dy); !overDy {
		l.apart(op, dx, dy)
	}
	if add != nil {
		l.read(op+" add", *add)
		l.over(op, dx, *add)
	}
	l.put(dx)
}
func (l *ledger) ActivateGrad(slope float32, y, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	l.grad("activate grad", dy, true, add, dx, y)
}
func (l *ledger) MaxPool(x, y gpu.Tensor) {
	l.read("pool", x)
	l.apart("pool", y, x)
	l.put(y)
}
func (l *ledger) MaxPoolGrad(x, dy gpu.Tensor, add *gpu.Tensor, dx gpu.Tensor) {
	l.grad("pool grad", dy, false, add, dx, x)
}
func (l *ledger) Slice(axis int, x gpu.Tensor, at gpu.Ptr, y gpu.Tensor) {
	l.read("slice", x)
	l.expect("slice", 4*int64(y.N), l.tensor(gpu.Tensor{Dims: gpu.Dims{N: y.N, D: 1, H: 1, W: 1, C: 1}}), at)
	l.apart("slice", y, x)
	l.put(y)
}
func (l *ledger) SliceGrad(axis int, dy gpu.Tensor, at gpu.Ptr, add *gpu.Tensor, dx gpu.Tensor) {
	l.expect("slice grad", 4*int64(dy.N), l.tensor(gpu.Tensor{Dims: gpu.Dims{N: dy.N, D: 1, H: 1, W: 1, C: 1}}), at)
	l.grad("slice grad", dy, false, add, dx)
}
func (l *ledger) Tint(x gpu.Tensor, scale, shift gpu.Ptr, y gpu.Tensor) {
	l.read("tint", x)
	l.apart("tint", y, x)
	l.put(y)
}
func (l *ledger) TintGrad(dy gpu.Tensor, scale gpu.Ptr, dx gpu.Tensor) {
	l.grad("tint grad", dy, false, nil, dx)
}
func (l *ledger) Unit(x, y gpu.Tensor) {
	l.read("unit", x)
	l.apart("unit", y, x)
	l.put(y)
}
func (l *ledger) UnitGrad(x, dy, dx gpu.Tensor) { l.grad("unit grad", dy, true, nil, dx, x) }
func (l *ledger) Round(k gpu.Scalar, z gpu.Tensor, idx gpu.Ptr, q gpu.Tensor, counts gpu.Ptr) {
	l.read("round", z)
	l.apart("round", q, z)
	l.put(q)
	l.write(4*int64(z.Voxels()), "codes", idx)
}
func (l *ledger) RoundGrad(k gpu.Scalar, z, dq, dz gpu.Tensor) {
	l.grad("round grad", dq, true, nil, dz, z)
}
func (l *ledger) JudgeLoss(j gpu.Judge, x gpu.Tensor, scale, lecam gpu.Ptr, dx *gpu.Tensor, out, workspace gpu.Ptr) {
	l.write(l.LossWork(x.Dims), "workspace", workspace)
	l.read("judge", x)
	if lecam >= 0 {
		l.number("judge", lecam)
		l.number("judge", lecam+4)
	}
	l.leave(8, "judged", out)
	if dx != nil {
		if l.lies[scale-4].what != "nudged" && l.lies[scale-8].what != "nudged" {
			l.number("judge", scale)
		}
		l.over("judge", *dx, x)
		l.put(*dx)
	}
}
func (l *ledger) PerceptualLoss(a, b gpu.Tensor, w, scale gpu.Ptr, add, da *gpu.Tensor, out, workspace gpu.Ptr) {
	l.write(l.LossWork(a.Dims), "workspace", workspace)
	l.read("perceptual", a, b)
	l.leave(4, "distance", out)
	if da != nil {
		l.number("perceptual", scale)
		l.apart("perceptual", *da, a, b)
		if add != nil {
			l.read("perceptual add", *add)
			l.over("perceptual", *da, *add)
		}
		l.put(*da)
	}
}
func (l *ledger) SimilarityLoss(k gpu.Similarity, y, t gpu.Tensor, scale gpu.Ptr, dy *gpu.Tensor, out, workspace gpu.Ptr) {
	l.write(l.SimilarityWork(k, y.Dims), "workspace", workspace)
	l.read("similarity", y, t)
	l.leave(4, "similarity", out)
	if dy != nil {
		l.number("similarity", scale)
		l.apart("similarity", *dy, y, t)
		l.put(*dy)
	}
}
func (l *ledger) Nudge(x, g gpu.Tensor, h float32, factor gpu.Ptr, y gpu.Tensor, out, workspace gpu.Ptr) {
	l.write(l.LossWork(x.Dims), "workspace", workspace)
	l.read("nudge", x, g)
	l.number("nudge", factor)
	l.apart("nudge", y, x, g)
	l.put(y)
	l.leave(12, "nudged", out)
}
