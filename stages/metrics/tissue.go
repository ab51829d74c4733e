package metrics

// Tissue is what a voxel is taken for, by the HU of its original alone. Blood with contrast agent above 200 HU counts as
// bone, and so does metal; fat counts as soft tissue. SoftTissue and Bone together are the body mask: above BodyHU.
type Tissue int

const (
	Air        Tissue = iota // HU < -950
	Lung                     // -950 ≤ HU ≤ -500
	SoftTissue               // -500 < HU ≤ 200
	Bone                     // 200 < HU
	Tissues    = int(iota)
)

// BodyHU is the threshold of the body mask: a voxel belongs to it when its original is above. The mask holds soft tissue,
// bone, vessels and the scanner's table; air and lung parenchyma are outside.
const BodyHU = -500

func (t Tissue) String() string {
	return [Tissues]string{"air", "lung", "soft_tissue", "bone"}[t]
}

// limits is the thresholds between tissues in units of [-1, 1].
type limits [Tissues - 1]float32

func newLimits(window [2]float64) (l limits) {
	for i, hu := range [...]float64{-950, BodyHU, 200} {
		l[i] = float32(2*(hu-window[0])/(window[1]-window[0]) - 1)
	}
	return l
}
