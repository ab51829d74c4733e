package read

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// origin is what tells copies of a file from other files, before their voxels are read.
type origin struct {
	header [sha256.Size]byte
	image  nifti.File
	size   int64 // of a single file, inflated
}

func originOf(h *nifti.Header) origin {
	return origin{sha256.Sum256(h.Raw), h.Files[len(h.Files)-1], h.VoxOffset + h.Bytes()}
}

// markCopies finds scans that are one file under several names, links included, inflated or not. Those behind the first name it in
// Copy. It looks into those files alone whose headers are the same to the byte.
func markCopies(ctx context.Context, scans []*volume.Scan, origins []origin) {
	same := map[[sha256.Size]byte][]int{}
	for i := range scans {
		same[origins[i].header] = append(same[origins[i].header], i)
	}
	for _, group := range same {
		if len(group) < 2 {
			continue
		}
		compressed := map[int64]bool{} // by size, inflated
		for _, i := range group {
			if scans[i].Content != "" {
				compressed[origins[i].size] = true
			}
		}
		contents, alike := make([]string, len(group)), map[string]int{}
		for n, i := range group {
			if ctx.Err() != nil {
				return
			}
			switch image := origins[i].image; {
			case scans[i].Content != "":
				contents[n] = scans[i].Content
			case compressed[image.Size]:
				contents[n], _ = nifti.Content(image.Path) // where it can't be read, it is nobody's copy
			default:
				contents[n] = samplesOf(image, 1)
				alike[contents[n]]++
			}
		}
		first := map[string]string{}
		for n, i := range group {
			if alike[contents[n]] > 1 {
				contents[n] = samplesOf(origins[i].image, 32)
			}
			switch of, ok := first[contents[n]]; {
			case contents[n] == "":
			case ok:
				scans[i].Copy = of
			default:
				first[contents[n]] = scans[i].ID
			}
		}
	}
}

// samplesOf is a digest of a file's size and of the middle of each of so many parts of it.
func samplesOf(file nifti.File, parts int64) string {
	const length = 4 << 10
	f, err := os.Open(file.Path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	sum, b := sha256.New(), make([]byte, length)
	for i := range parts {
		n, err := f.ReadAt(b, (2*i+1)*max(file.Size-length, 0)/(2*parts))
		if err != nil && !errors.Is(err, io.EOF) {
			return ""
		}
		_, _ = sum.Write(b[:n])
	}
	return fmt.Sprintf("%d %x", file.Size, sum.Sum(nil))
}
