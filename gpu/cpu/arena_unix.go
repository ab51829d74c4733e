//go:build unix

package cpu

import "golang.org/x/sys/unix"

// hugePage is the size and alignment that lets the kernel back the arena with huge pages.
const hugePage = 2 << 20

// mapArena maps anonymous memory outside Go's heap. Pages come as they are first touched.
func mapArena(bytes int) ([]byte, func() error, error) {
	all, err := unix.Mmap(-1, 0, bytes+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, err
	}
	skip := alignSkip(all, hugePage)
	b := all[skip : skip+bytes]
	adviseHuge(b)
	return b, func() error { return unix.Munmap(all) }, nil
}
