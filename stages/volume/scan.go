package volume

// Scan names one series before its voxels are read. The list of scans is frozen when a run starts; data order is a
// function of that list, so a Scan never changes afterwards.
type Scan struct {
	ID      string     `json:"id"`      // unique in the run, stable between runs: the slash path below the scans' common folder
	Path    string     `json:"path"`    // where its file is
	Index   int        `json:"index"`   // position in the frozen list
	Dims    [3]int     `json:"dims"`    // voxels, in canonical (RAS+) axes, after any resampling
	Spacing [3]float64 `json:"spacing"` // mm, likewise
	Digest  string     `json:"digest"`  // hex SHA-256 over the header, the file's size and its modification time

	// Content is what the file's bytes are known by, whenever and however often they were copied; "" where only Digest tells.
	Content string `json:"content,omitempty"`
	// Rising says that the file holds the scan's slices one after the other, from the lowest z up: it can be read as a stream.
	Rising bool `json:"-"`
	// Copy is the ID of the first scan of the list of whose file this one's is a copy; "" for none, and where it isn't known.
	Copy string `json:"-"`
}

// Voxels is the number of voxels of the scan.
func (s *Scan) Voxels() int64 { return int64(s.Dims[0]) * int64(s.Dims[1]) * int64(s.Dims[2]) }

// Affine maps voxel indices (i, j, k, 1) to world millimetres: three rows of a 4×4 matrix whose last row is 0 0 0 1.
type Affine [3][4]float64

// Geometry says how canonical voxels lie in the file that they came from, so that a result can be written over it.
type Geometry struct {
	Affine   Affine     // of the canonical (RAS+) grid, before resampling
	Source   Affine     // of the file
	Dims     [3]int     // of the file's grid, before Axes and Flip, before resampling
	Axes     [3]int     // canonical axis a is the file's axis Axes[a]
	Flip     [3]bool    // canonical axis a runs against the file's
	Spacing  [3]float64 // mm, of the file's grid in canonical order
	Resample bool       // the volume was resampled: Scan.Spacing differs from Spacing
	Header   []byte     // the file's header bytes, for codes, units and description
}
