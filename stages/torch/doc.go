// Package torch reads the tensors of files that PyTorch's torch.save wrote (the zip format, PyTorch 1.6 and later)
// without running what is in them: of the pickle inside, only containers, numbers, strings and tensors are made;
// everything else that it names is never called: of an object, what the pickle says of its attributes is kept, so that settings
// can be read.
//
// Reading order: file.go (the archive, tensors by name), values.go (settings), pickle.go (the machine), build.go (what it may
// build).
package torch
