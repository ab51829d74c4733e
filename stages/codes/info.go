package codes

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/flowrun/flowrun/stages/volume"
)

// infoKey is the metadata entry that makes a safetensors file one of codes.
const infoKey = "flowrun.codes"

// version of the layout: codes with one of a cell are written as version 1, which has no depth. A file with a higher one is refused.
const version = 2

// info is what a file says of its codes, in JSON. Everything of three is x, y, z.
type info struct {
	Version  int       `json:"version"`
	Scan     scan      `json:"scan"`
	Dims     []int     `json:"dims"`
	Padded   []int     `json:"padded"`
	Factor   []int     `json:"factor"`
	Tile     []int     `json:"tile"`
	Tiles    [][]int   `json:"tiles"`
	Window   []float64 `json:"window_hu"`
	Model    string    `json:"model"`
	Count    int       `json:"codebook"`
	Depth    int       `json:"depth,omitempty"`
	Channels int       `json:"channels"`
	Geometry geometry  `json:"geometry"`
}

type scan struct {
	ID      string    `json:"id"`
	Spacing []float64 `json:"spacing"`
	Digest  string    `json:"digest"`
}

type geometry struct {
	Affine   [][]float64 `json:"affine"`
	Source   [][]float64 `json:"source_affine"`
	Dims     []int       `json:"source_dims"`
	Axes     []int       `json:"axes"`
	Flip     []bool      `json:"flip"`
	Spacing  []float64   `json:"spacing"`
	Resample bool        `json:"resampled"`
	Header   []byte      `json:"source_header"` // base64
}

func encodeInfo(c *volume.Codes) (string, error) {
	g := &c.Geometry
	i := info{
		Version: 1,
		Scan:    scan{c.Scan.ID, c.Scan.Spacing[:], c.Scan.Digest},
		Dims:    c.Dims[:], Padded: c.Padded[:], Factor: c.Factor[:], Tile: c.Tile[:],
		Window: c.Window[:], Model: c.Model, Count: c.Count, Channels: c.Channels,
		Geometry: geometry{Affine: rows(&g.Affine), Source: rows(&g.Source), Dims: g.Dims[:], Axes: g.Axes[:], Flip: g.Flip[:],
			Spacing: g.Spacing[:], Resample: g.Resample, Header: g.Header},
	}
	if c.Depth > 1 {
		i.Version, i.Depth = version, c.Depth
	}
	for t := range c.Tiles {
		i.Tiles = append(i.Tiles, c.Tiles[t][:])
	}
	text, err := json.Marshal(i)
	return string(text), err
}

func rows(a *volume.Affine) [][]float64 { return [][]float64{a[0][:], a[1][:], a[2][:]} }

// decodeInfo gives codes without their arrays from the metadata of a file; they pass check.
func decodeInfo(meta map[string]string) (*volume.Codes, error) {
	text, ok := meta[infoKey]
	if !ok {
		return nil, fmt.Errorf("no file of codes: no %s entry in the metadata", infoKey)
	}
	var i info
	err := json.Unmarshal([]byte(text), &i)
	switch {
	case i.Version > version: // before err: a newer layout may not parse
		return nil, fmt.Errorf("codes of layout %d (this flowrun reads up to %d): use a newer flowrun", i.Version, version)
	case err != nil:
		return nil, fmt.Errorf("metadata %s: %w", infoKey, err)
	}
	c, err := i.codes()
	if err == nil {
		err = check(c)
	}
	if err == nil && i.Version < 1 {
		err = fmt.Errorf("version: %d", i.Version)
	}
	if err != nil {
		return nil, fmt.Errorf("metadata %s: %w", infoKey, err)
	}
	return c, nil
}

func (i *info) codes() (*volume.Codes, error) {
	c := &volume.Codes{Scan: &volume.Scan{ID: i.Scan.ID, Digest: i.Scan.Digest}, Model: i.Model, Count: i.Count, Depth: i.Depth, Channels: i.Channels}
	if i.Version < version {
		c.Depth = 1
	}
	g := &i.Geometry
	c.Geometry.Resample, c.Geometry.Header = g.Resample, g.Header
	err := errors.Join(
		fill("dims", c.Dims[:], i.Dims),
		fill("padded", c.Padded[:], i.Padded),
		fill("factor", c.Factor[:], i.Factor),
		fill("tile", c.Tile[:], i.Tile),
		fill("window_hu", c.Window[:], i.Window),
		fill("scan.spacing", c.Scan.Spacing[:], i.Scan.Spacing),
		fillAffine("geometry.affine", &c.Geometry.Affine, g.Affine),
		fillAffine("geometry.source_affine", &c.Geometry.Source, g.Source),
		fill("geometry.source_dims", c.Geometry.Dims[:], g.Dims),
		fill("geometry.axes", c.Geometry.Axes[:], g.Axes),
		fill("geometry.flip", c.Geometry.Flip[:], g.Flip),
		fill("geometry.spacing", c.Geometry.Spacing[:], g.Spacing),
	)
	if err != nil {
		return nil, err
	}
	c.Scan.Dims = c.Dims
	c.Tiles = make([][3]int, len(i.Tiles))
	for t, origin := range i.Tiles {
		if err := fill("tiles", c.Tiles[t][:], origin); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// fill copies a list that has to be of dst's length.
func fill[T any](name string, dst, list []T) error {
	if len(list) != len(dst) {
		return fmt.Errorf("%s: %d values (want %d)", name, len(list), len(dst))
	}
	copy(dst, list)
	return nil
}

func fillAffine(name string, dst *volume.Affine, list [][]float64) error {
	if len(list) != len(dst) {
		return fmt.Errorf("%s: %d rows (want %d)", name, len(list), len(dst))
	}
	for r, row := range list {
		if err := fill(name, dst[r][:], row); err != nil {
			return err
		}
	}
	return nil
}
