package pipe

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Batch collects size elements (at least 1) at a time. Only the end of data gives a smaller last one; a stop releases it.
func Batch[T any](in Port[T], stage string, size int) Port[[]T] {
	return transform(in, stage, true, func(n *node, in iter.Seq[T]) iter.Seq2[[]T, error] {
		return func(yield func([]T, error) bool) {
			var batch []T
			for v := range in {
				batch = append(batch, v)
				if len(batch) >= size {
					full := batch
					batch = nil
					if !yield(full, nil) {
						return
					}
				}
			}
			switch {
			case len(batch) == 0:
			case n.g.cut():
				n.drop(batch)
			default:
				yield(batch, nil)
			}
		}
	})
}

// Group collects the elements of each key and emits them, in order of arrival, as soon as there are as many as size says
// of the key's first element; it then forgets the key. Keys that are incomplete at the end of data are an error
// that lists them; a stop releases them.
func Group[T any, K comparable](in Port[T], stage string, key func(T) K, size func(T) int) Port[[]T] {
	type group struct {
		key   K
		want  int
		items []T
	}
	return transform(in, stage, true, func(n *node, in iter.Seq[T]) iter.Seq2[[]T, error] {
		return func(yield func([]T, error) bool) {
			groups := map[K]*group{}
			var order []*group // of first arrival
			var held T         // not yet in a group
			holding := false
			defer func() {
				if holding {
					n.drop(held)
				}
				for _, p := range order {
					n.drop(p.items)
				}
			}()
			for v := range in {
				held, holding = v, true
				k := key(v)
				p := groups[k]
				if p == nil {
					p = &group{key: k, want: size(v)}
					if p.want < 1 {
						yield(nil, fmt.Errorf("key %v: size %d (want at least 1)", k, p.want))
						return
					}
					groups[k] = p
					order = append(order, p)
				}
				p.items = append(p.items, v)
				holding = false
				if len(p.items) == p.want {
					delete(groups, k)
					order = slices.DeleteFunc(order, func(q *group) bool { return q == p })
					if !yield(p.items, nil) {
						return
					}
				}
			}
			if len(order) == 0 || n.g.cut() {
				return
			}
			const most = 10
			var lines []string
			for _, p := range order[:min(len(order), most)] {
				lines = append(lines, fmt.Sprintf("%v (%d of %d)", p.key, len(p.items), p.want))
			}
			text := "incomplete at the end of data: " + strings.Join(lines, ", ")
			if more := len(order) - most; more > 0 {
				text += fmt.Sprintf(" and %d more", more)
			}
			yield(nil, errors.New(text))
		}
	})
}
