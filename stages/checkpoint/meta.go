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
	Tags    []tag             `json:"tags,omitempty"`
}

// tag is volume.Tag with the names it has in a file.
type tag struct {
	Scan   string `json:"scan"`
	Index  int    `json:"index"`
	Epoch  int    `json:"epoch"`
	Tile   int    `json:"tile"`
	Tiles  int    `json:"tiles"`
	Origin [3]int `json:"origin"`
	Size   [3]int `json:"size"`
	Seq    int    `json:"seq"`
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
	st := state{Version: version, Step: s.Step, Cursor: s.Cursor, Reason: s.Reason}
	if s.Metrics != nil {
		st.Metrics = make(map[string]number, len(s.Metrics))
		for k, v := range s.Metrics {
			st.Metrics[k] = number(v)
		}
	}
	for _, t := range s.Tags {
		st.Tags = append(st.Tags, tag(t))
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
	for _, t := range st.Tags {
		s.Tags = append(s.Tags, volume.Tag(t))
	}
	return s, nil
}
