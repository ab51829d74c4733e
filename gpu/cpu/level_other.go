//go:build !amd64

package cpu

// levels lists the sets of kernels, fastest first.
func levels() []*level { return []*level{goLevel()} }
