package flows

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"unicode"

	"github.com/flowrun/flowrun/gpu/vqgan"
	"github.com/flowrun/flowrun/stages/volume"
)

// agrees checks that the snapshot's stream of patches and model are the job's.
func (j *Job) agrees(snap *volume.Snapshot, path string) error {
	_, queued := snap.Meta[ledgerKey]
	switch takes := j.ends().learn != nil; {
	case takes && !queued:
		return configErrorf("%s was trained without a queue, so nobody knows which of the queue's patches it has seen; choose another run.dir (train.init takes over its weights)", path)
	case queued && !takes:
		return configErrorf("%s was trained on patches from a queue, in their order; choose another run.dir (train.init takes over its weights)", path)
	}
	here, err := j.identity()
	if err != nil {
		return err
	}
	meta := maps.Clone(snap.Meta)
	if c, err := vqgan.ParseConfig(meta["model"]); err == nil { // with the keys that have come since
		if meta["model"], err = c.JSON(); err != nil {
			return err
		}
	}
	for name := range here {
		if key, then, now, differ := difference(meta[name], here[name]); differ {
			if name == "model" {
				key = "model." + key
			}
			return configErrorf("%s: is %s, but %s was trained with %s; choose another run.dir (train.init takes over its weights), or set it back", key, now, path, then)
		}
	}
	return nil
}

// identity is what a checkpoint keeps of the job that it must go on with.
func (j *Job) identity() (map[string]string, error) {
	stream, err := json.Marshal(j.stream())
	if err != nil {
		return nil, err
	}
	model, err := j.model.JSON()
	return map[string]string{"stream": string(stream), "model": model}, err
}

// difference finds the first key in which two JSON values differ, and what stands there in each. Keys are as in the
// file: tile.per_scan where that is the field PerScan of tile.
func difference(then, now string) (key, was, is string, differ bool) {
	var a, b map[string]json.RawMessage
	if json.Unmarshal([]byte(then), &a) == nil && json.Unmarshal([]byte(now), &b) == nil {
		for _, k := range slices.Sorted(maps.Keys(b)) {
			if inner, was, is, differ := difference(string(a[k]), string(b[k])); differ {
				return join(fileKey(k), inner), was, is, true
			}
		}
		return "", "", "", false
	}
	var c, d []json.RawMessage // a stage that may be repeated
	if json.Unmarshal([]byte(then), &c) == nil && json.Unmarshal([]byte(now), &d) == nil && len(c) == len(d) && len(d) > 0 && d[0][0] == '{' {
		for i := range d {
			if inner, was, is, differ := difference(string(c[i]), string(d[i])); differ {
				if len(d) > 1 {
					inner = join(fmt.Sprintf("[%d]", i), inner)
				}
				return inner, was, is, true
			}
		}
		return "", "", "", false
	}
	return "", then, now, then != now
}

// join puts a key behind the one that it is in.
func join(outer, inner string) string {
	if inner == "" || inner[0] == '[' {
		return outer + inner
	}
	return outer + "." + inner
}

// fileKey is a field's key in the file.
func fileKey(field string) string {
	var key []rune
	lower := false
	for _, r := range field {
		if unicode.IsUpper(r) && lower {
			key = append(key, '_')
		}
		lower = unicode.IsLower(r)
		key = append(key, unicode.ToLower(r))
	}
	return string(key)
}
