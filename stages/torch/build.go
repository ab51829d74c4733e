package torch

import (
	"errors"
	"fmt"
	"slices"
)

// Values of the machine are nil, bool, int64, float64, string, tuple, *items, *dict, global, *storage, *view, *instance, and
// object for all that it doesn't build.
type (
	tuple  []any
	items  struct{ list []any } // a list
	dict   struct{ entries map[string]any }
	global string // module, space, name
	object struct{}
)

// instance is what stands for an object of a class: not the object, but the entries and the attributes that the pickle has
// for it.
type instance struct {
	class global
	dict
	state any
}

// set keeps entries under strings; others can't name a tensor.
func (d *dict) set(key, value any) {
	if k, ok := key.(string); ok {
		if d.entries == nil {
			d.entries = map[string]any{}
		}
		d.entries[k] = value
	}
}

// storage is a typed block of bytes of the archive.
type storage struct {
	dtype string
	key   string // its entry is data/key
	count int    // elements
}

// view is a tensor: elements of a storage.
type view struct {
	storage        *storage
	offset         int
	shape, strides []int
}

// sizes are those of elements that can be read.
var sizes = map[string]int{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

var dtypes = map[global]string{
	"torch DoubleStorage": "F64", "torch FloatStorage": "F32", "torch HalfStorage": "F16", "torch BFloat16Storage": "BF16",
	"torch LongStorage": "I64", "torch IntStorage": "I32", "torch ShortStorage": "I16", "torch CharStorage": "I8",
	"torch ByteStorage": "U8", "torch BoolStorage": "BOOL",
}

// maxElements bounds a storage, so that no product of sizes overflows.
const maxElements = 1 << 40

// persistent makes a storage of the tuple ("storage", type, key, location, count).
func persistent(id any) any {
	t, ok := id.(tuple)
	if !ok || len(t) != 5 || t[0] != any("storage") {
		return object{}
	}
	kind, ok1 := t[1].(global)
	key, ok2 := t[2].(string)
	count, ok3 := t[4].(int64)
	if !ok1 || !ok2 || !ok3 || count < 0 || count > maxElements {
		return object{}
	}
	dtype, ok := dtypes[kind]
	if !ok {
		dtype = string(kind)
	}
	return &storage{dtype, key, int(count)}
}

// reduce stands for calling f: the few functions that build what is wanted.
func reduce(f any, args tuple) (any, error) {
	switch f {
	case global("collections OrderedDict"):
		d := &dict{}
		if len(args) == 0 {
			return d, nil
		}
		if l, ok := args[0].(*items); ok && len(args) == 1 {
			for _, e := range l.list {
				switch pair := e.(type) {
				case tuple:
					if len(pair) == 2 {
						d.set(pair[0], pair[1])
					}
				case *items:
					if len(pair.list) == 2 {
						d.set(pair.list[0], pair.list[1])
					}
				}
			}
			return d, nil
		}
	case global("torch._utils _rebuild_tensor"), global("torch._utils _rebuild_tensor_v2"):
		return rebuild(args)
	case global("torch._utils _rebuild_parameter"):
		if len(args) > 0 {
			if v, ok := args[0].(*view); ok {
				return v, nil
			}
		}
	}
	return object{}, nil
}

// rebuild makes a tensor of (storage, offset, shape, strides, …), or an object where the storage isn't known.
func rebuild(args tuple) (any, error) {
	if len(args) < 4 {
		return nil, fmt.Errorf("a tensor of %d arguments", len(args))
	}
	s, ok := args[0].(*storage)
	if !ok {
		return object{}, nil
	}
	offset, ok1 := args[1].(int64)
	shape, ok2 := ints(args[2])
	strides, ok3 := ints(args[3])
	if !ok1 || !ok2 || !ok3 || len(shape) != len(strides) || offset < 0 || offset > int64(s.count) {
		return nil, errors.New("a tensor whose offset, shape or strides make no sense")
	}
	v := &view{s, int(offset), shape, strides}
	if slices.Contains(shape, 0) {
		return v, nil
	}
	elements, last := 1, v.offset
	for i, n := range shape {
		if elements > s.count/n || n > 1 && strides[i] > s.count/(n-1) {
			return nil, fmt.Errorf("a tensor of %v, strides %v, in a storage of %d", shape, strides, s.count)
		}
		elements *= n
		last += (n - 1) * strides[i]
	}
	if last >= s.count {
		return nil, fmt.Errorf("a tensor of %v, strides %v, at %d in a storage of %d", shape, strides, offset, s.count)
	}
	return v, nil
}

// ints are the sizes in a tuple: not negative, at most maxRank of them.
func ints(x any) ([]int, bool) {
	const maxRank = 16
	t, ok := x.(tuple)
	if !ok || len(t) > maxRank {
		return nil, false
	}
	out := make([]int, len(t))
	for i, e := range t {
		n, ok := e.(int64)
		if !ok || n < 0 || n > maxElements {
			return nil, false
		}
		out[i] = int(n)
	}
	return out, true
}

func (v view) len() int {
	n := 1
	for _, d := range v.shape {
		n *= d
	}
	return n
}

// gather takes the view's elements from its storage's, in row-major order.
func (v view) gather(flat []float32) []float32 {
	out := make([]float32, v.len())
	place := make([]int, len(v.shape))
	at := v.offset
	for i := range out {
		out[i] = flat[at]
		for a := len(place) - 1; a >= 0; a-- {
			at += v.strides[a]
			if place[a]++; place[a] < v.shape[a] {
				break
			}
			at -= v.shape[a] * v.strides[a]
			place[a] = 0
		}
	}
	return out
}
