package main

// elementwise writes the kernels of the memory-bound ops.
func (k *kernels) elementwise() {}
