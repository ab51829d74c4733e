package cpu

import "unsafe"

// alignSkip is how many bytes of b lie before the first that is aligned.
func alignSkip(b []byte, align uintptr) int {
	return int(-uintptr(unsafe.Pointer(&b[0])) & (align - 1))
}
