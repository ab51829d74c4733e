package pipe

import (
	"iter"
	"reflect"
)

// Releaser is an element that owns something: the graph releases it when it drops it.
type Releaser interface{ Release() }

// Sizer is an element whose bytes are counted into Stat.Bytes while it is inside a stage.
type Sizer interface{ Bytes() int64 }

// releasers are what has to be released when v is dropped: v, or the elements of the slice v.
func releasers(v any) iter.Seq[Releaser] {
	return func(yield func(Releaser) bool) { walk(v, yield) }
}

// size is the bytes of v, or of the elements of the slice v.
func size(v any) (bytes int64) {
	walk(v, func(s Sizer) bool { bytes += s.Bytes(); return true })
	return bytes
}

// walk calls yield with v if it is an I, else with the elements of the slice v that are; never with a nil pointer.
func walk[I any](v any, yield func(I) bool) bool {
	x := reflect.ValueOf(v)
	if !x.IsValid() || x.Kind() == reflect.Pointer && x.IsNil() {
		return true
	}
	if i, ok := v.(I); ok {
		return yield(i)
	}
	if x.Kind() == reflect.Slice && mayBe[I](x.Type()) {
		for i := range x.Len() {
			if !walk(x.Index(i).Interface(), yield) {
				return false
			}
		}
	}
	return true
}

// mayBe says that a value of type t can be an I, or hold one.
func mayBe[I any](t reflect.Type) bool {
	switch {
	case t.Implements(reflect.TypeFor[I]()), t.Kind() == reflect.Interface:
		return true
	case t.Kind() == reflect.Slice:
		return mayBe[I](t.Elem())
	}
	return false
}
