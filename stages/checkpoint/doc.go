// Package checkpoint keeps a run's snapshots on disk so that nothing is lost: a file appears under its name only when
// it is whole and durable, and is checked again when it is read.
//
// A checkpoint is one safetensors file, readable by any safetensors library: weights under their state-dict names,
// the rest of the state beside them, and what isn't a tensor as JSON strings in the header's __metadata__. It is sealed
// by its SHA-256 (package safetensors).
//
// Reading order: options.go (the keys of the stage), store.go (save, retention, links; Write outside a store), load.go
// (what is read back), meta.go (a Snapshot's place in the header), back.go (going back), disk.go (what tests make fail).
package checkpoint
