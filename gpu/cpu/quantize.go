package cpu

import (
	"fmt"
	"math"

	"github.com/flowrun/flowrun/gpu"
)

// The nearest code maximises z·c - ½‖c‖²: a matrix product with a running maximum. Codes are packed in blocks, [block][Dim][lanes], behind
// their ½‖c‖²; a block is filled up with codes that are never nearest.

// packedCodes is the number of codes with the last block's padding.
func (e *Engine) packedCodes(k gpu.Quantizer) int {
	return chunks(k.Codes, e.level.codeLanes) * e.level.codeLanes
}

// QuantizeWork is the scratch of Quantize: packed codes, and each chunk's share of the loss.
func (e *Engine) QuantizeWork(k gpu.Quantizer, d gpu.Dims) int64 {
	return bytesOf(e.packedCodes(k)*(k.Dim+1)) + bytesOf(2*e.rowChunks(d))
}

func (e *Engine) rowChunks(d gpu.Dims) int { return chunks(d.N*d.D*d.H, rowsPerChunk(d)) }

// Quantize finds the nearest codes.
func (e *Engine) Quantize(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, q gpu.Tensor, counts, sums, loss, workspace gpu.Ptr) {
	checkCodes(k, z)
	same(z, q)
	gz := e.grid(z)
	codes, index := e.floats(codebook, k.Codes*k.Dim), e.ints(idx, z.Voxels())
	padded := e.packedCodes(k)
	work := e.floats(workspace, padded*(k.Dim+1))
	half, packed := work[:padded], work[padded:]
	e.packCodes(k, codes, half, packed)
	// Few voxels and many codes: a row at a time.
	e.pool.runOn(gz.rows(), func(thread, r int) {
		e.level.nearest(&e.scratch[thread], index[r*z.W:(r+1)*z.W], gz.inner(r), packed, half)
	})
	e.Lookup(k, codebook, idx, q)

	parts := e.doubles(workspace+gpu.Ptr(bytesOf(padded*(k.Dim+1))), e.rowChunks(z.Dims))
	e.eachRows(z.Dims, func(_ *scratch, chunk, r0, r1 int) {
		var s float64
		for r := r0; r < r1; r++ {
			row := gz.inner(r)
			for w, i := range index[r*z.W : (r+1)*z.W] {
				code := codes[int(i)*k.Dim:][:k.Dim]
				for j, v := range row[w*k.Dim:][:k.Dim] {
					d := float64(v - code[j])
					s += d * d
				}
			}
		}
		parts[chunk] = s
	})
	e.floats(loss, 1)[0] = float32(total(parts) / float64(z.Len()))
	e.countCodes(k, gz, index, counts, sums)
}

// countCodes adds voxels and their sum to each code, in the order of voxels.
func (e *Engine) countCodes(k gpu.Quantizer, z grid, index []int32, counts, sums gpu.Ptr) {
	if counts >= 0 {
		n := e.floats(counts, k.Codes)
		for _, i := range index {
			n[i]++
		}
	}
	if sums < 0 {
		return
	}
	s := e.floats(sums, k.Codes*k.Dim)
	for r := range z.rows() {
		row := z.inner(r)
		for w, i := range index[r*z.W : (r+1)*z.W] {
			to := s[int(i)*k.Dim:][:k.Dim]
			for j, v := range row[w*k.Dim:][:k.Dim] {
				to[j] += v
			}
		}
	}
}

func checkCodes(k gpu.Quantizer, z gpu.Tensor) {
	if z.C != k.Dim {
		panic(fmt.Sprintf("cpu: codes of %d floats for %d channels", k.Dim, z.C))
	}
}

func (e *Engine) packCodes(k gpu.Quantizer, codes, half, packed []float32) {
	l := e.level.codeLanes
	e.pool.run(len(half)/l, func(b int) {
		block := packed[b*l*k.Dim : (b+1)*l*k.Dim]
		for i := range l {
			c := b*l + i
			if c >= k.Codes {
				half[c] = float32(math.Inf(1))
				for j := range k.Dim {
					block[j*l+i] = 0
				}
				continue
			}
			var s float64
			for j, v := range codes[c*k.Dim : (c+1)*k.Dim] {
				block[j*l+i] = v
				s += float64(v) * float64(v)
			}
			half[c] = float32(s / 2)
		}
	})
}

// nearestGo writes idx[w] = the code with the least ½‖c‖² - z[w]·c, the lowest on a tie. Blocks are of 4 codes.
func nearestGo(_ *scratch, idx []int32, z, packed, half []float32) {
	dim := len(packed) / len(half)
	for w := range idx {
		v := z[w*dim : (w+1)*dim]
		best, at := float32(math.Inf(1)), 0
		for b := 0; b < len(half); b += 4 {
			h := half[b:][:4]
			d0, d1, d2, d3 := h[0], h[1], h[2], h[3]
			block := packed[b*dim:][:4*dim]
			for j, x := range v {
				c := block[4*j:][:4]
				d0 -= x * c[0]
				d1 -= x * c[1]
				d2 -= x * c[2]
				d3 -= x * c[3]
			}
			for i, d := range [4]float32{d0, d1, d2, d3} {
				if d < best {
					best, at = d, b+i
				}
			}
		}
		idx[w] = int32(at)
	}
}

// QuantizeGrad writes dz = dq + scale*(z - codebook[idx]), dq 0 where it is nil.
func (e *Engine) QuantizeGrad(k gpu.Quantizer, z gpu.Tensor, codebook, idx gpu.Ptr, dq *gpu.Tensor, scale gpu.Ptr, dz gpu.Tensor) {
	checkCodes(k, z)
	same(z, dz)
	gz, gdz := e.grid(z), e.grid(dz)
	var gdq grid
	if dq != nil {
		same(z, *dq)
		inPlace(*dq, dz)
		gdq = e.grid(*dq)
	}
	by := e.floats(scale, 1)[0]
	codes, index := e.floats(codebook, k.Codes*k.Dim), e.ints(idx, z.Voxels())
	e.eachRows(z.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			vz, vdz := gz.inner(r), gdz.inner(r)
			if dq != nil {
				copy(vdz, gdq.inner(r))
			} else {
				clear(vdz)
			}
			for w, i := range index[r*z.W : (r+1)*z.W] {
				code := codes[int(i)*k.Dim:][:k.Dim]
				for j, c := range code {
					at := w*k.Dim + j
					vdz[at] += by * (vz[at] - c)
				}
			}
			gdz.fillHalo(r)
		}
	})
}

// Lookup writes q = codebook[idx].
func (e *Engine) Lookup(k gpu.Quantizer, codebook, idx gpu.Ptr, q gpu.Tensor) {
	checkCodes(k, q)
	gq := e.grid(q)
	codes, index := e.floats(codebook, k.Codes*k.Dim), e.ints(idx, q.Voxels())
	e.eachRows(q.Dims, func(_ *scratch, _, r0, r1 int) {
		for r := r0; r < r1; r++ {
			row := gq.inner(r)
			for w, i := range index[r*q.W : (r+1)*q.W] {
				copy(row[w*k.Dim:][:k.Dim], codes[int(i)*k.Dim:])
			}
			gq.fillHalo(r)
		}
	})
}

func total(parts []float64) float64 {
	var s float64
	for _, p := range parts {
		s += p
	}
	return s
}
