package volume

import "fmt"

// Tag says which part of which scan a patch is. It is the patch's identity, and the key of its randomness.
type Tag struct {
	Scan   string // Scan.ID
	Index  int    // Scan.Index
	Epoch  int
	Tile   int // 0 ≤ Tile < Tiles
	Tiles  int // patches that this scan has in this epoch
	Origin [3]int
	Size   [3]int
	Seq    int // position in the epoch's stream as it reaches batch, from 0
}

func (t Tag) String() string {
	return fmt.Sprintf("%s epoch %d tile %d/%d at %v size %v", t.Scan, t.Epoch, t.Tile, t.Tiles, t.Origin, t.Size)
}

// Patch is a tag, a reference to the volume that it is cut from, and what is still to be done to it. Its voxels are
// cut, clipped, scaled and transformed once, by batch. Origin+Size may pass the volume's high ends: voxels there
// repeat the edge.
type Patch struct {
	Tag
	Volume *Volume
	Ops    []Op
}

// Release drops the patch's reference to its volume.
func (p *Patch) Release() { p.Volume.Release() }

// Op is one augmentation, decided but not yet done. Flips come first, then the turns, then intensity:
// HU' = Scale*HU + Shift before clipping, for input and target alike; Noise is added to the input only.
type Op struct {
	Flip  [3]bool
	Turns int     // quarter turns in the x-y plane, from +x towards +y
	Scale float64 // 1 leaves it
	Shift float64 // HU
	Noise float64 // standard deviation, HU
	Key   uint64  // of the noise
}

// Batch is patches as float32, scaled by the window to [-1, 1]. Target is what the model should give for Input; the
// two are one slice unless noise was added.
type Batch struct {
	Tags    []Tag
	Volumes []*Volume  // what each patch was cut from, counted, where a later stage asks for it; else nil
	Size    [3]int     // of each patch, voxels
	Window  [2]float64 // HU of -1 and 1
	Input   []float32  // [N, D, H, W]
	Target  []float32  // [N, D, H, W]
	Free    func()     // gives the buffers back; may be nil
}

// Bytes is the host memory of the buffers.
func (b *Batch) Bytes() int64 {
	n := len(b.Input)
	if len(b.Target) > 0 && len(b.Input) > 0 && &b.Target[0] != &b.Input[0] {
		n += len(b.Target)
	}
	return 4 * int64(n)
}

// Release gives the buffers back and drops the references to the volumes.
func (b *Batch) Release() {
	for _, v := range b.Volumes {
		v.Release()
	}
	if b.Free != nil {
		b.Free()
	}
}
