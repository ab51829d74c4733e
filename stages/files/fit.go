package files

import (
	"strings"
	"unicode/utf8"
)

// Fit puts rest behind a slash path, whose last element is cut where it would be longer than file systems take, with what a
// file's name has behind it until it is whole.
func Fit(id, rest string) string {
	base := id[strings.LastIndexByte(id, '/')+1:]
	most := max(1, 255-len(rest)-len("..0123456789abcdef.tmp"))
	if len(base) <= most {
		return id + rest
	}
	for most > 1 && !utf8.RuneStart(base[most]) {
		most--
	}
	return id[:len(id)-len(base)+most] + rest
}
