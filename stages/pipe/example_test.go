package pipe_test

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/flowrun/flowrun/stages/pipe"
)

// The last of a few numbers' squares that arrive in order, though two workers take their time over them.
func Example() {
	g := pipe.New(context.Background())
	numbers := pipe.From(g, "numbers", func(_ context.Context, emit func(int) error) error {
		for i := range 10 {
			if err := emit(i); err != nil {
				return err
			}
		}
		return nil
	})
	squares := pipe.Map(numbers, "square", 2, func(_ context.Context, i int) (int, error) {
		time.Sleep(time.Duration(i%3) * time.Millisecond)
		return i * i, nil
	})
	big := pipe.Transform(squares, "big", func(_ context.Context, in iter.Seq[int]) iter.Seq2[int, error] {
		return func(yield func(int, error) bool) {
			for i := range in {
				if i > 30 && !yield(i, nil) {
					return
				}
			}
		}
	})
	pipe.Into(big, "print", func(_ context.Context, i int) error {
		fmt.Println(i)
		return nil
	})
	fmt.Println("end:", g.Wait())
	// Output:
	// 36
	// 49
	// 64
	// 81
	// end: <nil>
}

// Scans are admitted in order by the source, loaded by two workers, and give their bytes back when they are through.
func ExampleBudget() {
	type scan struct {
		name string
		free func()
	}
	memory := pipe.NewBudget(100)
	g := pipe.New(context.Background())
	admitted := pipe.From(g, "admit", func(ctx context.Context, emit func(scan) error) error {
		for _, name := range []string{"a", "b", "c", "d"} {
			free, err := memory.Acquire(ctx, 40, name)
			if err != nil {
				return err
			}
			if err := emit(scan{name, free}); err != nil {
				free()
				return err
			}
		}
		return nil
	})
	loaded := pipe.Map(admitted, "load", 2, func(_ context.Context, s scan) (scan, error) { return s, nil })
	pipe.Into(loaded, "use", func(_ context.Context, s scan) error {
		fmt.Println(s.name)
		s.free()
		return nil
	})
	fmt.Println(g.Wait(), memory.InUse())
	// Output:
	// a
	// b
	// c
	// d
	// <nil> 0
}
