// Package safetensors reads and writes the files that hold tensors by name
// (https://github.com/huggingface/safetensors): weights, checkpoints, codes.
//
// A file may be sealed: its first metadata entry, sha256, is then the SHA-256 of the whole file with its own 64 hex digits
// read as '0'. Any reader of the format reads a sealed file; this one notices when a bit of it isn't what was written.
// [Save] seals, and gives a file its name only once it is whole and durable. flowrun writes no other files, and reads their tensors one by
// one through [Open]; [Write] and [Read] are for who exchanges small ones with other programs, as tests do.
//
// Reading order: header.go (the format's header), write.go and read.go (tensors out and in), save.go (the seal).
package safetensors
