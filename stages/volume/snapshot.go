package volume

// Array is a named tensor on the host, row-major.
type Array struct {
	Name  string
	Shape []int
	Data  []float32
}

// Cursor is a place in the stream of patches: everything before position Seq of epoch Epoch has been trained.
type Cursor struct {
	Epoch int `json:"epoch"`
	Seq   int `json:"seq"`
}

// Snapshot is all that a run needs to go on from a step boundary. It is immutable.
type Snapshot struct {
	Step    int
	Cursor  Cursor
	Arrays  []Array            // weights under their state-dict names; "ema.", "adam.m.", "adam.v." before those of the rest
	Meta    map[string]string  // JSON by name: config, scans, model, counters
	Metrics map[string]float64 // of the validation at this step, if there was one; keys as in metrics.jsonl
	Reason  string             // "every", "validate", "queue" (which waits for it), "stop" (one that may come at any step) or "end"
	Tags    []Tag              // trained since the snapshot before it
	Free    func()             // gives the host copy back; may be nil
}

// Release gives the host copy back.
func (s *Snapshot) Release() {
	if s.Free != nil {
		s.Free()
	}
}
