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

// sharedBytes is the dynamic shared memory of the kernels that have some.
var sharedBytes = map[string]int{
	"conv256x128": pair(tile{256, 128}), "conv512x64": pair(tile{512, 64}), "conv512x32": pair(tile{512, 32}),
	"weight256x128": ring(tile{256, 128}), "weight256x64": ring(tile{256, 64}), "weight256x32": ring(tile{256, 32}),
}

// pair is the bytes of two stages of a convolution: targets, eight more that runs reach, and the weights of a run's taps, bfloat16.
// Half of the sums pass through it too.
func pair(t tile) int { return max(2*(t.m+8+longest*t.n)*depth*2, t.m/2*t.n*4) }

// ring is the bytes of four stages of both operands of a weight gradient, bfloat16.
func ring(t tile) int { return 4 * (t.m + t.n) * depth * 2 }
