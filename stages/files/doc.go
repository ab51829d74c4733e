// Package files is what stages share about files by name: [Found] gives those that a run works on IDs that stay the same from
// run to run, [Write] and [Disk.Write] make one that appears whole, and lasts, or not at all, [Lines] is one that grows by lines
// that do. It is a leaf: it imports nothing of flowrun, and every stage may import it.
//
// Reading order: found.go and fit.go (names), write.go and lines.go (onto the disk), read.go (what is read whole has a largest size).
package files
