package volume

// Output is what a model made of a patch: the tag says where it belongs. Voxels are [D, H, W] in [-1, 1] of the
// volume's window, of the tag's Size.
type Output struct {
	Tag
	Volume *Volume // the scan that the patch was cut from; counted
	Voxels []float32
	Free   func() // gives Voxels back; may be nil
}

// Release drops the reference to the volume and gives the voxels back.
func (o *Output) Release() {
	if o.Free != nil {
		o.Free()
	}
	o.Volume.Release()
}

// Slab is finished slices Z0 ≤ z < Z1 of a merged volume, [z, y, x] in [-1, 1] of the volume's window. The slabs of a
// scan come in order and without gaps; the last one has Z1 = Volume.Dims[2].
type Slab struct {
	Volume *Volume // counted
	Z0, Z1 int
	Voxels []float32
	Free   func() // gives Voxels back; may be nil
}

// Last says that no slab of the scan comes after this one.
func (s *Slab) Last() bool { return s.Z1 == s.Volume.Dims[2] }

// Release drops the reference to the volume and gives the voxels back.
func (s *Slab) Release() {
	if s.Free != nil {
		s.Free()
	}
	s.Volume.Release()
}
