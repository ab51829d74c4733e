package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strconv"

	"github.com/flowrun/flowrun/stages/volume"
)

// stateKey is the metadata entry that makes a safetensors file a checkpoint. The others are Snapshot.Meta.
const stateKey = "flowrun"

// version of the checkpoint's layout. A file with a higher one is refused.
const version = 1

// state is what a Snapshot holds beside Arrays and Meta.
type state struct {
	Version int               `json:"version"`
	Step    int               `json:"step"`
	Cursor  volume.Cursor     `json:"cursor"`
	Reason  string            `json:"reason"`
	Metrics map[string]number `json:"metrics,omitempty"`
	Tags    *tags             `json:"tags,omitempty"`
}

// tags are Snapshot.Tags in little space: there may be a hundred thousand of them, and a header has an end.
type tags struct {
	Scans []string  `json:"scans"`
	Rows  [][12]int `json:"rows"` // place in Scans, Index, Epoch, Tile, Tiles, Origin x y z, Size x y z, Seq
}

func packTags(list []volume.Tag) *tags {
	if len(list) == 0 {
		return nil
	}
	t := &tags{Rows: make([][12]int, len(list))}
	place := make(map[string]int)
	for i, g := range list {
		at, ok := place[g.Scan]
		if !ok {
			at = len(t.Scans)
			place[g.Scan] = at
			t.Scans = append(t.Scans, g.Scan)
		}
		o, s := g.Origin, g.Size
		t.Rows[i] = [12]int{at, g.Index, g.Epoch, g.Tile, g.Tiles, o[0], o[1], o[2], s[0], s[1], s[2], g.Seq}
	}
	return t
}

func (t *tags) unpack() ([]volume.Tag, error) {
	if t == nil {
		return nil, nil
	}
	list := make([]volume.Tag, len(t.Rows))
	for i, r := range t.Rows {
		if r[0] < 0 || r[0] >= len(t.Scans) {
			return nil, fmt.Errorf("tag %d: scan %d of %d", i, r[0], len(t.Scans))
		}
		list[i] = volume.Tag{Scan: t.Scans[r[0]], Index: r[1], Epoch: r[2], Tile: r[3], Tiles: r[4],
			Origin: [3]int(r[5:8]), Size: [3]int(r[8:11]), Seq: r[11]}
	}
	return list, nil
}

// number is a float64 in JSON, with a string for what JSON has no number for: "NaN", "+Inf", "-Inf".
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if f := float64(n); math.IsNaN(f) || math.IsInf(f, 0) {
		return []byte(`"` + strconv.FormatFloat(f, 'g', -1, 64) + `"`), nil
	}
	return json.Marshal(float64(n))
}

func (n *number) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"NaN"`:
		*n = number(math.NaN())
	case `"+Inf"`:
		*n = number(math.Inf(1))
	case `"-Inf"`:
		*n = number(math.Inf(-1))
	default:
		return json.Unmarshal(b, (*float64)(n))
	}
	return nil
}

// encodeMeta is the metadata of a snapshot's file.
func encodeMeta(s *volume.Snapshot) (map[string]string, error) {
	if _, ok := s.Meta[stateKey]; ok {
		return nil, fmt.Errorf("metadata %q: the name is taken", stateKey)
	}
	if s.Step < 0 {
		return nil, fmt.Errorf("step %d", s.Step)
	}
	st := state{Version: version, Step: s.Step, Cursor: s.Cursor, Reason: s.Reason, Tags: packTags(s.Tags)}
	if s.Metrics != nil {
		st.Metrics = make(map[string]number, len(s.Metrics))
		for k, v := range s.Metrics {
			st.Metrics[k] = number(v)
		}
	}
	text, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	meta := map[string]string{stateKey: string(text)}
	maps.Copy(meta, s.Meta)
	return meta, nil
}

// decodeMeta gives a snapshot without its arrays from the metadata of a checkpoint.
func decodeMeta(meta map[string]string) (*volume.Snapshot, error) {
	text, ok := meta[stateKey]
	if !ok {
		return nil, errors.New("not a checkpoint: no flowrun entry in the metadata")
	}
	var st state
	err := json.Unmarshal([]byte(text), &st)
	switch {
	case st.Version > version: // before err: a newer layout may not parse
		return nil, fmt.Errorf("checkpoint of layout %d (this flowrun reads up to %d): use a newer flowrun", st.Version, version)
	case err != nil:
		return nil, fmt.Errorf("metadata %s: %w", stateKey, err)
	case st.Version < 1 || st.Step < 0 || st.Cursor.Epoch < 0 || st.Cursor.Seq < 0:
		return nil, fmt.Errorf("metadata %s: version %d, step %d, cursor %+v", stateKey, st.Version, st.Step, st.Cursor)
	}
	s := &volume.Snapshot{Step: st.Step, Cursor: st.Cursor, Reason: st.Reason, Meta: maps.Clone(meta)}
	delete(s.Meta, stateKey)
	if st.Metrics != nil {
		s.Metrics = make(map[string]float64, len(st.Metrics))
		for k, v := range st.Metrics {
			s.Metrics[k] = float64(v)
		}
	}
	if s.Tags, err = st.Tags.unpack(); err != nil {
		return nil, fmt.Errorf("metadata %s: %w", stateKey, err)
	}
	return s, nil
}
