package torch

import (
	"maps"
	"slices"
	"strings"
)

// maxList is the length of the longest list that Values keeps.
const maxList = 64

// values finds the numbers, words and truths of dicts in dicts, and lists of them. Settings of argparse and of OmegaConf, and
// objects of classes that are dicts, count as dicts.
func values(found map[string]any, name string, v any, depth int, w *walk) {
	if w.past(name) {
		return // settings lie near the root
	}
	v = plain(v)
	switch v := v.(type) {
	case *dict:
		if depth == 0 {
			return
		}
		for _, key := range slices.Sorted(maps.Keys(v.entries)) {
			inner := key
			if name != "" {
				inner = name + "." + key
			}
			values(found, inner, v.entries[key], depth-1, w)
		}
	case *items:
		whole(found, name, v.list)
	case tuple:
		whole(found, name, v)
	default:
		if scalar(v) {
			found[name] = v
		}
	}
}

// whole keeps a list if it holds only scalars.
func whole(found map[string]any, name string, list []any) {
	if len(list) == 0 || len(list) > maxList {
		return
	}
	out := make([]any, len(list))
	for i, e := range list {
		if out[i] = plain(e); !scalar(out[i]) {
			return
		}
	}
	found[name] = out
}

func scalar(v any) bool {
	switch v.(type) {
	case bool, int64, float64, string:
		return true
	}
	return false
}

// plain is what an object of settings holds.
func plain(v any) any {
	o, ok := v.(*instance)
	if !ok {
		return v
	}
	state, ok := o.state.(*dict)
	if !ok {
		return &o.dict
	}
	switch {
	case o.class == "omegaconf.dictconfig DictConfig", o.class == "omegaconf.listconfig ListConfig":
		return state.entries["_content"]
	case strings.HasPrefix(string(o.class), "omegaconf.nodes "):
		return state.entries["_val"]
	case len(o.entries) > 0:
		return &o.dict
	}
	return state
}
