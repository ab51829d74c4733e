package cpu

import "golang.org/x/sys/unix"

// adviseHuge asks for huge pages; a kernel that has none says no, and that is fine.
func adviseHuge(b []byte) { _ = unix.Madvise(b, unix.MADV_HUGEPAGE) }
