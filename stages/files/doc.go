// Package files is what stages share about files by name: [Found] gives those that a run works on IDs that stay the same from
// run to run, [Write] and [Disk.Write] make one that appears whole, and lasts, or not at all, [Append]
// makes one longer by a line that does. It is a leaf: it imports nothing of flowrun.
package files
