// Package codes keeps scans as what the encoder made of them: one small file each, from which a decoder gives the
// volume back, and with which others can train.
//
// A file NAME.codes.safetensors holds the tensors
//
//	codes                  U16 (I32 where the codebook has more than 65536) [z, y, x], or [tile, z, y, x] of several tiles; with one axis
//	                       more, depth, of a residual quantiser
//	latents, quantised     F32 […, z, y, x, channel], before and after quantisation; where they were asked for
//	latents.mean, .std     F32 [channel], over all cells; likewise of quantised
//
// and, as JSON in the metadata entry flowrun.codes, the scan, the grid, the window, the model's fingerprint and the whole
// geometry; docs/codes.md names every key. Like a checkpoint it is sealed by its SHA-256 (package safetensors); without a
// seal it is taken for the work of another program, and loads too. Python reads it with numpy alone:
//
//	import json, numpy
//
//	def read(path):
//	    raw = open(path, "rb").read()
//	    start = 8 + int.from_bytes(raw[:8], "little")
//	    head = json.loads(raw[8:start])
//	    info = json.loads(head.pop("__metadata__")["flowrun.codes"])
//	    kinds = {"U16": "<u2", "I32": "<i4", "F32": "<f4"}
//	    data = {name: raw[start + t["data_offsets"][0]:start + t["data_offsets"][1]] for name, t in head.items()}
//	    return info, {name: numpy.frombuffer(data[name], kinds[t["dtype"]]).reshape(t["shape"]) for name, t in head.items()}
//
// Reading order: options.go (the keys of the stages), info.go (the metadata), check.go (what holds of any codes), save.go,
// load.go, list.go (files by folder and pattern).
package codes
