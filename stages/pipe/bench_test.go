package pipe

import (
	"context"
	"iter"
	"testing"
)

// BenchmarkGraph is the cost of an element in a graph of five stages that do nothing: source, map, expand, transform, sink.
func BenchmarkGraph(b *testing.B) {
	for name, workers := range map[string]int{"workers=1": 1, "workers=4": 4} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			it := new(int)
			g := New(b.Context())
			src := From(g, "source", func(_ context.Context, emit func(*int) error) error {
				for b.Loop() {
					if err := emit(it); err != nil {
						return err
					}
				}
				return nil
			})
			read := Map(src, "map", workers, func(_ context.Context, it *int) (*int, error) { return it, nil })
			tiles := Expand(read, "expand", func(_ context.Context, it *int) iter.Seq2[*int, error] {
				return func(yield func(*int, error) bool) { yield(it, nil) }
			})
			mixed := Transform(tiles, "transform", func(_ context.Context, in iter.Seq[*int]) iter.Seq2[*int, error] {
				return func(yield func(*int, error) bool) {
					for it := range in {
						if !yield(it, nil) {
							return
						}
					}
				}
			})
			Into(mixed, "sink", func(context.Context, *int) error { return nil })
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "elements/s")
		})
	}
}
