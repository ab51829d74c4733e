package flows

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/flowrun/flowrun/stages/checkpoint"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// resume opens the store and returns the snapshot to go on from; nil for a new run.
func (r *run) resume() (*volume.Snapshot, error) {
	o, ok := option[checkpoint.Options](r.job)
	if !ok {
		return nil, nil
	}
	var err error
	if r.store, err = checkpoint.Open(r.file("checkpoints"), *o); err != nil {
		return nil, err
	}
	if tr, _ := option[train.Options](r.job); tr.Guard.Tries > 0 {
		r.store.Probation = tr.Guard.Reach()
	}
	from := r.job.run.Resume
	if from != "auto" && from != "never" {
		if _, err := os.Stat(from); err != nil {
			return nil, configErrorf("run.resume: %s: no such checkpoint (want auto, never or a checkpoint's file)", from)
		}
		return r.resumeFrom(from)
	}
	snap, path, skipped, err := r.store.Latest()
	for _, e := range skipped {
		r.log.Warn().Err(e).Msg("checkpoint passed over")
	}
	switch {
	case err != nil:
		return nil, err
	case snap == nil && len(skipped) > 0:
		return nil, dataErrorf("none of the %d checkpoints in %s verifies (the newest: %w); set run.resume to one you trust, or choose another run.dir",
			len(skipped), r.file("checkpoints"), skipped[0])
	case snap == nil:
		return nil, nil
	case from == "never":
		return nil, configErrorf("run.resume: never, but %s holds checkpoints up to step %d; choose another run.dir, or set run.resume: auto", r.job.run.Dir, snap.Step)
	}
	if len(skipped) > 0 {
		if _, err := r.store.SetAside(snap.Step); err != nil {
			return nil, err
		}
	}
	r.store.Tidy()
	r.last = path
	r.log.Info().Str("event", "resume").Str("checkpoint", path).Int("step", snap.Step).Int("epoch", snap.Cursor.Epoch).Msg("going on")
	return snap, r.job.agrees(snap, path)
}

// resumeFrom goes on from a named checkpoint; those of later steps are set aside, for this run will write its own.
func (r *run) resumeFrom(path string) (*volume.Snapshot, error) {
	snap, err := checkpoint.Load(path)
	if err != nil {
		return nil, configErrorf("run.resume: %w", err)
	}
	if err := r.job.agrees(snap, path); err != nil {
		return nil, err
	}
	aside, err := r.store.SetAside(snap.Step)
	if err != nil {
		return nil, err
	}
	if len(aside) > 0 {
		r.log.Warn().Strs("files", aside).Msg("later checkpoints set aside")
	}
	r.last = path
	return snap, nil
}

// thaw takes the frozen list of scans out of a snapshot. They are looked for where the file says now: a folder that was
// moved is found, and one that isn't there is an error before its scans are taken for bad ones.
func (r *run) thaw(ctx context.Context, snap *volume.Snapshot) (*data, error) {
	var frozen []*volume.Scan
	if err := json.Unmarshal([]byte(snap.Meta["scans"]), &frozen); err != nil {
		return nil, fmt.Errorf("the checkpoint's list of scans: %w", err)
	}
	d, err := r.refreeze(frozen, snap.Meta["held"])
	if err != nil {
		return nil, err
	}
	scans, bad, err := r.job.listScans(ctx)
	if err != nil && len(bad) == 0 {
		return nil, err
	}
	paths := map[string]string{}
	for _, s := range scans {
		paths[s.ID] = s.Path
	}
	for _, s := range frozen {
		if path, ok := paths[s.ID]; ok {
			s.Path = path
			delete(paths, s.ID)
		}
	}
	for id := range paths {
		if r.quarantine.Has(id) {
			delete(paths, id)
		}
	}
	if len(paths) > 0 {
		r.log.Warn().Int("scans", len(paths)).Msg("scans that were not there when the run began are left out; a new run.dir takes them in")
	}
	return d, nil
}

// refreeze splits a checkpoint's scans as its run did: held is the list of those held out, whatever the tables and lists
// that train.validate names may say by now.
func (r *run) refreeze(frozen []*volume.Scan, held string) (*data, error) {
	if held == "" { // a checkpoint that doesn't tell
		return r.job.freeze(frozen, nil)
	}
	var names []string
	if err := json.Unmarshal([]byte(held), &names); err != nil {
		return nil, fmt.Errorf("the checkpoint's list of scans held out: %w", err)
	}
	return r.job.freezeAs(frozen, nil, func() (train, out []*volume.Scan, err error) {
		for _, s := range frozen {
			if slices.Contains(names, s.ID) {
				out = append(out, s)
			} else {
				train = append(train, s)
			}
		}
		return train, out, nil
	})
}
