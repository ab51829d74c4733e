package report

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/jpeg"
	_ "image/png" // samples are PNGs
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/image/draw"
)

// Thumbs makes pictures small enough to lie in a page, each once as long as Keep keeps it. One goroutine at a time may use it.
type Thumbs struct {
	Width int // pixels at most
	made  map[string]thumb
}

type thumb struct {
	data template.URL
	of   time.Time // when the file was written
}

// largestPicture bounds what Data decodes, in pixels: a sample of the largest scan is a fifth of it.
const largestPicture = 64 << 20

// Data is the picture at path as a data URI: a JPEG of at most Width pixels across, some 100 KB.
func (t *Thumbs) Data(path string) (template.URL, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if m, ok := t.made[path]; ok && m.of.Equal(info.ModTime()) {
		return m.data, nil
	}
	data, err := t.make(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if t.made == nil {
		t.made = map[string]thumb{}
	}
	t.made[path] = thumb{data, info.ModTime()}
	return data, nil
}

// Keep forgets all pictures but those at paths.
func (t *Thumbs) Keep(paths []string) {
	maps.DeleteFunc(t.made, func(path string, _ thumb) bool { return !slices.Contains(paths, path) })
}

func (t *Thumbs) make(path string) (template.URL, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	c, _, err := image.DecodeConfig(f)
	if err != nil {
		return "", err
	}
	if c.Width < 1 || c.Height < 1 || c.Width > largestPicture/c.Height {
		return "", fmt.Errorf("a picture of %d × %d pixels", c.Width, c.Height)
	}
	if _, err := f.Seek(0, 0); err != nil {
		return "", err
	}
	m, _, err := image.Decode(f)
	if err != nil {
		return "", err
	}
	if w := t.Width; c.Width > w {
		small := image.NewRGBA(image.Rect(0, 0, w, max(1, c.Height*w/c.Width)))
		draw.CatmullRom.Scale(small, small.Bounds(), m, m.Bounds(), draw.Src, nil)
		m = small
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, m, &jpeg.Options{Quality: 82}); err != nil {
		return "", err
	}
	return template.URL("data:image/jpeg;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil //nolint:gosec // made here
}

// Spread chooses at most n of list, evenly, the first and the last among them.
func Spread[T any](list []T, n int) []T {
	if len(list) <= n {
		return list
	}
	if n < 2 {
		return list[len(list)-n:]
	}
	chosen := make([]T, n)
	for i := range chosen {
		chosen[i] = list[i*(len(list)-1)/(n-1)]
	}
	return chosen
}
