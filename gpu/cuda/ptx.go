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

// module is the text of one, and what it was compiled for.
type module struct{ text, target string }

// modules gives them all.
func modules() ([]module, error) {
	names, err := fs.Glob(kernels, "kernels/*.ptx")
	if err != nil {
		return nil, err
	}
	all := make([]module, len(names))
	for i, name := range names {
		text, err := kernels.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all[i].text = string(text)
		if m := targetText.FindStringSubmatch(all[i].text); m != nil {
			all[i].target = m[1]
		}
	}
	return all, nil
}

// everyone is the target that each card which is Usable compiles for itself; another is that of one kind of card.
const everyone = "sm_80"

var targetText = regexp.MustCompile(`(?m)^\.target (\w+)`)

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
	"conv256x128Hopper": woven(tile{256, 128}, 4), "conv384x128Hopper": woven(tile{384, 128}, 4),
	"conv512x64Hopper": woven(tile{512, 64}, 4), "conv768x64Hopper": woven(tile{768, 64}, 3),
	"conv256x128": pair(tile{256, 128}), "conv512x64": pair(tile{512, 64}), "conv512x32": pair(tile{512, 32}),
	"weight9x64": ring(weight9x64), "weight9x32": ring(weight9x32), "weight4x128": ring(weight4x128), "weight4x64": ring(weight4x64), "weight4x32": ring(weight4x32),
	"weight9x64Hopper": rings(weight9x64), "weight4x128Hopper": rings(weight4x128),
	"weight1x128": ring(weight1x128), "weight1x32": ring(weight1x32),
}

// pair is the bytes of two stages of a convolution: targets, eight more that runs reach, and the weights of a run's taps, bfloat16.
// Half of the sums pass through it too, with eight bytes for each target.
func pair(t tile) int { return max(2*(t.m+8+longest*t.n)*depth*2, t.m/2*(t.n*4+8)) }

// woven is the bytes of the stages of a convolution on Hopper: targets, eight more for each later tap of a run, and the weights. All of the
// sums pass through them, with eight bytes for each target.
func woven(t tile, stages int) int {
	return max(stages*(t.m+8*(longest-1)+longest*t.n)*depth*2, t.m*(t.n*4+8))
}

// ring is the bytes of the stages of a weight gradient, three under way and those that taps along y meet, each of both operands in bfloat16.
func ring(t weightTile) int {
	return (3 + t.group[0]) * ((strip+t.group[1]-1)*t.m + strip*t.n) * 2
}

// rings is the bytes of a weight gradient's stages on Hopper, four under way and one that may be multiplied yet, and as many zeros as the
// straight operand has of each.
func rings(t weightTile) int {
	stages := 5 + t.group[0]
	return (stages*(strip+t.group[1]-1)*t.m + (stages+1)*strip*t.n) * 2
}
