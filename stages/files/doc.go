// Package files is what stages share about files by name: [Found] gives those that a run works on IDs that stay the same from
// run to run, [Write] makes one that appears whole or not at all. It is a leaf: it imports nothing of flowrun.
package files
