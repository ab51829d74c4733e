// Package inflate reads gzip (RFC 1952, RFC 1951), about twice as fast as compress/gzip on CT, which is mostly
// literals: one look into a 2048-entry table gives up to three of them, and bits are taken from a 64-bit
// buffer that is refilled eight bytes at a time. Checksums and sizes are always verified. Members that follow one
// another are one stream.
//
// Reading order: inflate.go (blocks, and the loop over codes), table.go (what the loop looks up), member.go (gzip's headers and
// trailers), input.go.
package inflate
