package flows

import (
	"github.com/flowrun/flowrun/stages/augment"
	"github.com/flowrun/flowrun/stages/batch"
	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/infer"
	"github.com/flowrun/flowrun/stages/merge"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/queue"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/shuffle"
	"github.com/flowrun/flowrun/stages/tile"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/write"
)

// What flows between stages; nothing in front of a source.
const (
	nothing      = ""
	scans        = "Scan" // within read
	volumes      = "Volume"
	patches      = "Patch"
	batches      = "Batch"
	snapshots    = "Snapshot"
	outputs      = "Output"
	slabs        = "Slab"
	codeGrids    = "Codes"
	writtenFiles = "File"

	references = "Scan"  // the name of a scan, and where it is
	queueEdge  = "Queue" // what lies between publish and subscribe
	either     = "Scan or Patch"
)

// stage is one row of the table: what a name in the YAML's flow stands for.
type stage struct {
	name, doc string
	in, out   string                    // element types
	once      bool                      // at most one in a flow
	source    bool                      // may begin a flow, whatever in says
	options   func() any                // a new options struct
	wire      func(w *wiring, s *piece) // puts the stage behind what w has wired so far
}

// stages is the table.
func stages() []stage {
	return []stage{
		{name: "scans", in: nothing, out: references, once: true, options: func() any { return new(queue.ListOptions) }, wire: wireScans,
			doc: "Names scans for publish, epoch by epoch, or as they appear in a folder. None of their voxels is read here."},
		{name: "publish", in: either, out: queueEdge, options: func() any { return new(queue.PublishOptions) }, wire: wirePublish,
			doc: "Sends scans, or patches, to the queue of the block queue, and waits while that is full. Patches go as int16 with what augment decided; batch carries that out."},
		{name: "subscribe", in: queueEdge, source: true, out: either, options: func() any { return new(queue.SubscribeOptions) }, wire: wireSubscribe,
			doc: "Takes scans (before read) or patches (before batch) from the queue. What was lost in a crash comes again; each patch is trained once an epoch."},
		{name: "read", in: references, source: true, out: volumes, once: true, options: func() any { return new(read.Options) }, wire: wireRead,
			doc: "Reads NIfTI scans, in a new order each epoch, ahead of the stages behind it and within the memory budget. Voxels stay int16. A scan that can't be read is quarantined and the run goes on."},
		{name: "tile", in: volumes, out: patches, options: func() any { return new(tile.Options) }, wire: wireTile,
			doc: "Cuts a volume into overlapping patches: a flush grid that covers every voxel, or as many random crops."},
		{name: "shuffle", in: patches, out: patches, options: func() any { return new(shuffle.Options) }, wire: wireShuffle,
			doc: "Mixes the patches of several scans. What waits here is a tag and a reference to the int16 volume, not a float patch."},
		{name: "augment", in: patches, out: patches, options: func() any { return new(augment.Options) }, wire: wireAugment,
			doc: "Decides flips, turns and intensity changes of each patch; batch carries them out."},
		{name: "batch", in: patches, out: batches, options: func() any { return new(batch.Options) }, wire: wireBatch,
			doc: "Cuts, clips, scales and transforms patches into batches of float32. Batches run on across scans and epochs; only the end of the data gives a smaller one, which is trained too."},
		{name: "train", in: batches, out: snapshots, once: true, options: func() any { return new(train.Options) }, wire: wireTrain,
			doc: "Takes an optimiser step for each batch, validates, and owns the model."},
		{name: "checkpoint", in: snapshots, out: snapshots, once: true, options: func() any { return new(checkpoint.Options) }, wire: wireCheckpoint,
			doc: "Writes snapshots as safetensors files: atomic, checksummed, the last and the best kept."},

		{name: "infer", in: batches, out: outputs, once: true, options: func() any { return new(infer.Options) }, wire: wireInfer,
			doc: "Runs a trained model on batches of a grid's tiles. Window, patch and model are the checkpoint's unless the file says otherwise."},
		{name: "merge", in: outputs, out: slabs, once: true, options: func() any { return new(merge.Options) }, wire: wireMerge,
			doc: "Puts overlapping tiles back together into whole volumes, slice by slice, the same bits in whatever order they come."},
		{name: "measure", in: slabs, out: slabs, once: true, options: func() any { return new(metrics.Options) }, wire: wireMeasure,
			doc: "Measures merged volumes against their scans: PSNR, 3D SSIM, fine structure (HFEN), MAE in HU by tissue, bits per voxel, codebook usage, seams, next to the trilinear baseline. Writes measures.json and measures.csv and prints a table."},
		{name: "write", in: slabs, out: writtenFiles, once: true, options: func() any { return new(write.Options) }, wire: wireWrite,
			doc: "Writes merged volumes as NIfTI in HU, on the grid of the scan that they were made from."},

		{name: "encode", in: volumes, out: codeGrids, once: true, options: func() any { return new(infer.CodeOptions) }, wire: wireEncode,
			doc: "Makes codes of whole volumes: one grid a scan for a model with norm: channel, else one a tile."},
		{name: "save", in: codeGrids, out: codeGrids, once: true, options: func() any { return new(codes.Options) }, wire: wireSave,
			doc: "Writes codes, one small safetensors file a scan. docs/codes.md says how to read them elsewhere."},
		{name: "load", in: nothing, out: codeGrids, once: true, options: func() any { return new(codes.LoadOptions) }, wire: wireLoad,
			doc: "Reads files of codes, edited ones too."},
		{name: "decode", in: codeGrids, out: outputs, once: true, options: func() any { return new(infer.CodeOptions) }, wire: wireDecode,
			doc: "Makes voxels of codes, for merge and write."},
	}
}

// find returns the row of a stage.
func find(name string) (stage, bool) {
	for _, s := range stages() {
		if s.name == name {
			return s, true
		}
	}
	return stage{}, false
}

// StageDoc describes a stage, or a top block of the file, for help.
type StageDoc struct {
	Name, Doc string
	In, Out   string // element types; both empty for a block
	Options   any    // a new options struct, to be described by configs
}

// StageDocs lists the stages in the order in which data meets them.
func StageDocs() []StageDoc {
	var docs []StageDoc
	for _, s := range stages() {
		in := s.in
		if s.source {
			in = nothing
		}
		docs = append(docs, StageDoc{s.name, s.doc, in, s.out, s.options()})
	}
	return docs
}

// BlockDocs lists the blocks beside the flow.
func BlockDocs() []StageDoc {
	b := newBlocks()
	return []StageDoc{
		{Name: "run", Doc: "Where the run is kept and what it may use.", Options: b.run},
		{Name: "queue", Doc: "The NATS server and the run's name there, for publish and subscribe.", Options: b.queue},
		{Name: "model", Doc: "The 3D VQ-GAN's generator: encoder, codebook, decoder.", Options: b.model},
		{Name: "observe", Doc: "What is told of a run while it goes on, and to whom.", Options: b.observe},
	}
}
