// Package torch reads the tensors of files that PyTorch's torch.save wrote (the zip format, PyTorch 1.6 and later)
// without running what is in them: of the pickle inside, only containers, numbers, strings and tensors are made;
// everything else that it names stays an unnamed object that is never called.
//
// Reading order: file.go (the archive, tensors by name), pickle.go (the machine), build.go (what it may build).
package torch
