package read

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/flowrun/flowrun/stages/nifti"
	"github.com/flowrun/flowrun/stages/volume"
)

// origin is what tells copies of a file from other files, before their voxels are read.
type origin struct {
	header [sha256.Size]byte
	image  nifti.File
}

func originOf(h *nifti.Header) origin {
	return origin{sha256.Sum256(h.Raw), h.Files[len(h.Files)-1]}
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
		inflated := map[int64]bool{} // sizes of those that are compressed
		ends := make([]string, len(group))
		for n, i := range group {
			var size int64
			if ends[n], size = gzipEnd(origins[i].image.Path); ends[n] != "" {
				inflated[size] = true
			}
		}
		first := map[string]string{}
		for n, i := range group {
			if ctx.Err() != nil {
				return
			}
			content, image := ends[n], origins[i].image
			switch {
			case content != "":
			case inflated[image.Size&math32]:
				content = sumOf(image.Path)
			default:
				content = samplesOf(image)
			}
			switch of, ok := first[content]; {
			case content == "":
			case ok:
				scans[i].Copy = of
			default:
				first[content] = scans[i].ID
			}
		}
	}
}

const math32 = 1<<32 - 1

// gzipEnd is the CRC-32 and the inflated size, modulo 2^32, that a gzip file ends in; "" for any other.
func gzipEnd(path string) (sum string, size int64) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0
	}
	defer func() { _ = f.Close() }()
	var b [10]byte
	end, err := f.Seek(-8, io.SeekEnd)
	if err != nil || end < 2 {
		return "", 0
	}
	if _, err := f.ReadAt(b[:2], 0); err != nil || b[0] != 0x1f || b[1] != 0x8b {
		return "", 0
	}
	if _, err := f.ReadAt(b[2:], end); err != nil {
		return "", 0
	}
	size = int64(binary.LittleEndian.Uint32(b[6:]))
	return crcText(binary.LittleEndian.Uint32(b[2:]), size), size
}

// sumOf is what gzipEnd would be of the file's bytes.
func sumOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	sum := crc32.NewIEEE()
	n, err := io.Copy(sum, f)
	if err != nil {
		return ""
	}
	return crcText(sum.Sum32(), n&math32)
}

func crcText(sum uint32, size int64) string { return fmt.Sprintf("crc %08x %d", sum, size) }

// samplesOf is a digest of a file's size and of pieces all through it.
func samplesOf(file nifti.File) string {
	const pieces, length = 32, 4 << 10
	f, err := os.Open(file.Path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	sum, b := sha256.New(), make([]byte, length)
	for i := range int64(pieces) {
		n, err := f.ReadAt(b, i*max(file.Size-length, 0)/(pieces-1))
		if err != nil && !errors.Is(err, io.EOF) {
			return ""
		}
		_, _ = sum.Write(b[:n])
	}
	return fmt.Sprintf("%d %x", file.Size, sum.Sum(nil))
}
