package cpu

import "math"

// normGrad is one row's share of a norm's gradient. Which fields a kernel reads is said there; add may be nil.
type normGrad struct {
	x, dy, add, dx      []float32 // W*C
	gamma, beta         []float32 // C
	rstd                []float32 // W (channel norm) or C
	mean, scale, shift  []float32 // C
	meanG, meanGX       []float32 // C
	dgamma, dbeta, work []float32 // C; the first two are added to
}

// expGo is e^x to about 1e-7 of its value, 0 below -87 and +Inf above 88: x = n·ln 2 + r, |r| ≤ ½ ln 2, and the
// Taylor-like polynomial of Cephes' expf.
func expGo(x float32) float32 {
	if x > 88.3762626647949 {
		return float32(math.Inf(1))
	}
	if x < -87.3365447504019 {
		return 0
	}
	n := float32(math.Floor(float64(x*1.44269504088896341 + 0.5)))
	r := x - n*0.693359375
	r -= n * -2.12194440e-4
	p := float32(1.9875691500e-4)
	p = p*r + 1.3981999507e-3
	p = p*r + 8.3334519073e-3
	p = p*r + 4.1665795894e-2
	p = p*r + 1.6666665459e-1
	p = p*r + 5.0000001201e-1
	p = p*(r*r) + r + 1
	if n != n {
		return n
	}
	k := int(n)
	half := k / 2 // 2^128 has no float32 of its own
	return p * math.Float32frombits(uint32(half+127)<<23) * math.Float32frombits(uint32(k-half+127)<<23)
}

func sigmoidGo(u float32) float32 { return 1 / (1 + expGo(-u)) }

// siluGradGo is d silu(u)/du.
func siluGradGo(u float32) float32 {
	s := sigmoidGo(u)
	return s * (1 + u*(1-s))
}

// rootMeanSquareGo writes rstd[w] = 1/√(mean over c of x[w, c]² + eps).
func rootMeanSquareGo(rstd, x []float32, eps float32) {
	c := len(x) / len(rstd)
	for w := range rstd {
		var s float32
		for _, v := range x[w*c : (w+1)*c] {
			s += v * v
		}
		rstd[w] = float32(1 / math.Sqrt(float64(s/float32(c)+eps)))
	}
}

// channelNormGo writes y = silu(γ·rstd·x + β).
func channelNormGo(y, x, rstd, gamma, beta []float32) {
	c := len(gamma)
	for w, r := range rstd {
		v, o := x[w*c:(w+1)*c], y[w*c:(w+1)*c]
		for i := range v {
			u := gamma[i]*(v[i]*r) + beta[i]
			o[i] = u * sigmoidGo(u)
		}
	}
}

// channelNormGradGo writes dx = rstd·(g - x̂·mean(g·x̂)) + add with x̂ = rstd·x, g = γ·d, d = dy·silu'(γ·x̂ + β), and adds Σ d·x̂
// to dgamma, Σ d to dbeta. It reads x, dy, add, gamma, beta, rstd [W].
func channelNormGradGo(n *normGrad) {
	c := len(n.gamma)
	for w, r := range n.rstd {
		at := w * c
		x, dy, dx := n.x[at:at+c], n.dy[at:at+c], n.dx[at:at+c]
		var dot float32
		for i := range x {
			xh := x[i] * r
			d := dy[i] * siluGradGo(n.gamma[i]*xh+n.beta[i])
			n.dgamma[i] += d * xh
			n.dbeta[i] += d
			n.work[i] = n.gamma[i] * d
			dot += n.work[i] * xh
		}
		dot /= float32(c)
		for i := range x {
			v := r * (n.work[i] - x[i]*r*dot)
			if n.add != nil {
				v += n.add[at+i]
			}
			dx[i] = v
		}
	}
}

// momentsGo adds Σ (x-origin) and Σ (x-origin)² of each channel.
func momentsGo(sum, square, x, origin []float32) {
	c := len(origin)
	for at := 0; at < len(x); at += c {
		for i, v := range x[at : at+c] {
			v -= origin[i]
			sum[i] += v
			square[i] += v * v
		}
	}
}

// affineSiLUGo writes y = silu(scale·x + shift).
func affineSiLUGo(y, x, scale, shift []float32) {
	c := len(scale)
	for at := 0; at < len(x); at += c {
		for i, v := range x[at : at+c] {
			u := scale[i]*v + shift[i]
			y[at+i] = u * sigmoidGo(u)
		}
	}
}

// groupGradSumsGo adds, with d = dy·silu'(scale·x + shift) and x̂ = (x-mean)·rstd, Σ d·x̂ to dgamma and Σ d to dbeta. It reads x, dy,
// scale, shift, mean, rstd [C].
func groupGradSumsGo(n *normGrad) {
	c := len(n.scale)
	for at := 0; at < len(n.x); at += c {
		for i, v := range n.x[at : at+c] {
			d := n.dy[at+i] * siluGradGo(n.scale[i]*v+n.shift[i])
			n.dgamma[i] += d * ((v - n.mean[i]) * n.rstd[i])
			n.dbeta[i] += d
		}
	}
}

// groupGradGo writes dx = rstd·(γ·d - meanG - x̂·meanGX) + add. It reads x, dy, add, scale, shift, mean, rstd [C], gamma, meanG, meanGX.
func groupGradGo(n *normGrad) {
	c := len(n.scale)
	for at := 0; at < len(n.x); at += c {
		for i, v := range n.x[at : at+c] {
			d := n.dy[at+i] * siluGradGo(n.scale[i]*v+n.shift[i])
			xh := (v - n.mean[i]) * n.rstd[i]
			v := n.rstd[i] * (n.gamma[i]*d - n.meanG[i] - xh*n.meanGX[i])
			if n.add != nil {
				v += n.add[at+i]
			}
			n.dx[at+i] = v
		}
	}
}

// plainChannelGo writes y = γ·rstd·x + β.
func plainChannelGo(y, x, rstd, gamma, beta []float32) {
	c := len(gamma)
	beta = beta[:c]
	for w, r := range rstd {
		v, o := x[w*c:][:c], y[w*c:][:c]
		for i, g := range gamma {
			o[i] = g*(v[i]*r) + beta[i]
		}
	}
}

// plainChannelGradGo is channelNormGradGo with d = dy.
func plainChannelGradGo(n *normGrad) {
	c := len(n.gamma)
	gamma, dgamma, dbeta, work := n.gamma, n.dgamma[:c], n.dbeta[:c], n.work[:c]
	for w, r := range n.rstd {
		at := w * c
		x, dy, dx := n.x[at:][:c], n.dy[at:][:c], n.dx[at:][:c]
		var dot float32
		for i, g := range gamma {
			xh, d := x[i]*r, dy[i]
			dgamma[i] += d * xh
			dbeta[i] += d
			work[i] = g * d
			dot += work[i] * xh
		}
		dot /= float32(c)
		for i := range dx {
			v := r * (work[i] - x[i]*r*dot)
			if n.add != nil {
				v += n.add[at+i]
			}
			dx[i] = v
		}
	}
}

// plainApplyGo writes y = scale·x + shift.
func plainApplyGo(y, x, scale, shift []float32) {
	c := len(scale)
	shift = shift[:c]
	for at := 0; at < len(x); at += c {
		v, o := x[at:][:c], y[at:][:c]
		for i, s := range scale {
			o[i] = s*v[i] + shift[i]
		}
	}
}

// plainGradSumsGo is groupGradSumsGo with d = dy.
func plainGradSumsGo(n *normGrad) {
	c := len(n.mean)
	mean, rstd, dgamma, dbeta := n.mean, n.rstd[:c], n.dgamma[:c], n.dbeta[:c]
	for at := 0; at < len(n.x); at += c {
		x, dy := n.x[at:][:c], n.dy[at:][:c]
		for i, m := range mean {
			d := dy[i]
			dgamma[i] += d * ((x[i] - m) * rstd[i])
			dbeta[i] += d
		}
	}
}

// plainGradGo is groupGradGo with d = dy.
func plainGradGo(n *normGrad) {
	c := len(n.mean)
	mean, rstd, gamma, meanG, meanGX := n.mean, n.rstd[:c], n.gamma[:c], n.meanG[:c], n.meanGX[:c]
	for at := 0; at < len(n.x); at += c {
		x, dy, dx := n.x[at:][:c], n.dy[at:][:c], n.dx[at:][:c]
		for i, m := range mean {
			r := rstd[i]
			v := r * (gamma[i]*dy[i] - meanG[i] - (x[i]-m)*r*meanGX[i])
			if n.add != nil {
				v += n.add[at+i]
			}
			dx[i] = v
		}
	}
}
