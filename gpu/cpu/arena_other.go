//go:build !unix

package cpu

import "github.com/flowrun/flowrun/gpu"

// mapArena takes the arena from Go's heap.
func mapArena(bytes int) ([]byte, func() error, error) {
	all := make([]byte, bytes+gpu.Align)
	skip := alignSkip(all, gpu.Align)
	return all[skip : skip+bytes], func() error { return nil }, nil
}
