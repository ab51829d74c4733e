//go:build cuda

package cuda

import (
	"embed"
	"io/fs"
	"regexp"
)

//go:generate go run ./internal/compile

// kernels are the modules, compiled.
//
//go:embed kernels/*.ptx
var kernels embed.FS

// modules gives the text of each.
func modules() ([]string, error) {
	names, err := fs.Glob(kernels, "kernels/*.ptx")
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(names))
	for i, name := range names {
		text, err := kernels.ReadFile(name)
		if err != nil {
			return nil, err
		}
		texts[i] = string(text)
	}
	return texts, nil
}

var entry = regexp.MustCompile(`\.visible \.entry (\w+)\(`)

// entries are the names of a module's kernels.
func entries(text string) []string {
	var names []string
	for _, m := range entry.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// sharedBytes is the dynamic shared memory of the kernels that have some: a ring of stages for a tile.
var sharedBytes = map[string]int{
	"conv128x128": ring(tile{128, 128}), "conv256x64": ring(tile{256, 64}), "conv256x32": ring(tile{256, 32}),
	"weight128x128": ring(tile{128, 128}), "weight256x64": ring(tile{256, 64}), "weight256x32": ring(tile{256, 32}),
}

// ring is the bytes of four stages of both operands, bfloat16; the sums pass through it too.
func ring(t tile) int { return 4 * (t.m + t.n) * depth * 2 }
