package infer

import "fmt"

// levels are the codes of Identity: one for each step of a uint16.
const levels = 1 << 16

// Identity gives back what it gets. Each voxel is its own latent, and its code is the nearest of 65536 levels from -1 to 1:
// through Encode and Decode too, HU come back the same after rounding, for windows that are less than 65535 HU wide.
type Identity struct{ patch [3]int }

var _ Model = (*Identity)(nil)

// NewIdentity is an identity for patches of a size.
func NewIdentity(patch [3]int) *Identity { return &Identity{patch} }

// Patch is the size that it was made for.
func (m *Identity) Patch() [3]int { return m.patch }

// Downsample is one voxel a code.
func (*Identity) Downsample() [3]int { return [3]int{1, 1, 1} }

// Codes is the number of levels.
func (*Identity) Codes() int { return levels }

// Depth is 1.
func (*Identity) Depth() int { return 1 }

// Channels is 1.
func (*Identity) Channels() int { return 1 }

// Fingerprint is "identity".
func (*Identity) Fingerprint() string { return IdentityName }

// Tileable is true.
func (*Identity) Tileable() bool { return true }

// Fields are nothing: a voxel is its own.
func (*Identity) Fields() (encoder, decoder [3]int) { return encoder, decoder }

// Reconstruct copies, unless dst is src.
func (m *Identity) Reconstruct(dst, src []float32, n int, codes []int32) error {
	if want := n * product(m.patch); len(src) != want || len(dst) != want || codes != nil && len(codes) != want {
		return fmt.Errorf("reconstruct: %d patches, %d voxels to %d, %d codes (want %d)", n, len(src), len(dst), len(codes), want)
	}
	for i := range codes {
		codes[i] = level(src[i])
	}
	if &dst[0] != &src[0] {
		copy(dst, src)
	}
	return nil
}

// Encode gives the nearest levels.
func (*Identity) Encode(idx []int32, latents, quantised, src []float32, size [3]int) error {
	if n := product(size); len(src) != n || len(idx) != n {
		return fmt.Errorf("encode: %d voxels to %d codes (want %d)", len(src), len(idx), n)
	}
	copy(latents, src)
	for i, x := range src {
		idx[i] = level(x)
	}
	for i := range quantised {
		quantised[i] = value(idx[i])
	}
	return nil
}

// Decode gives the levels' values, or quantised.
func (*Identity) Decode(dst []float32, idx []int32, quantised []float32, size [3]int) error {
	n := product(size)
	if len(dst) != n || quantised == nil && len(idx) != n || quantised != nil && len(quantised) != n {
		return fmt.Errorf("decode: %d codes or %d latents to %d voxels (want %d)", len(idx), len(quantised), len(dst), n)
	}
	if quantised != nil {
		copy(dst, quantised)
		return nil
	}
	for i, k := range idx {
		if k < 0 || k >= levels {
			return fmt.Errorf("decode: code %d is %d (there are %d)", i, k, levels)
		}
		dst[i] = value(k)
	}
	return nil
}

func level(x float32) int32 { return int32((min(max(float64(x), -1), 1)+1)/2*(levels-1) + 0.5) }

func value(k int32) float32 { return float32(float64(k)/(levels-1)*2 - 1) }
