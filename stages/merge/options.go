package merge

// Modes of Options.
const (
	ModeBlend = "blend"
	ModeExact = "exact"
)

// Windows of Options.
const (
	Hann     = "hann"
	Gaussian = "gaussian"
	Linear   = "linear"
	Crop     = "crop"
	Constant = "constant"
)

// Options says how overlapping tiles become one volume. Merge looks at the window alone: which tiles are made for which
// mode is the graph's to say.
type Options struct {
	Mode   string `key:"mode" default:"blend" oneof:"blend exact" doc:"How tiles become one volume: blend weighs overlapping tiles by the window. exact has no overlaps and no seams, needs a model whose norm is channel, and takes no notice of the window."`
	Window string `key:"window" default:"hann" oneof:"hann gaussian linear crop constant" doc:"Weights of overlapping tiles, which always sum to one. hann and linear fade over the actual overlap, gaussian (sigma an eighth of the patch) over the whole patch, constant takes the mean, crop takes each voxel from the tile whose middle is nearest."`
}
