// Package train turns batches into optimiser steps, and steps into snapshots. It owns the model's state: at a step
// boundary that somebody asked for (a checkpoint's interval, a validation, a stop, the end) it emits an immutable
// volume.Snapshot, and nothing else of the program ever sees the state.
//
// Reading order: options.go (the keys of the stage), loop.go (what a loop is told, and when it ends), run.go (a step's way from batch to
// snapshot), guard.go (what tells training that goes wrong, and what is done about it), split.go (which scans train and which validate).
package train
