package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
)

// Headers of messages.
const (
	schemaHeader = "Fr-Schema"
	idHeader     = "Fr-Id"
	digestHeader = "Fr-Digest"
	dtypeHeader  = "Fr-Dtype"
	shapeHeader  = "Fr-Shape"  // z,y,x
	scansHeader  = "Fr-Scans"  // scans of the epoch; 0: nobody knows yet
	tilesHeader  = "Fr-Tiles"  // patches of the scan in the epoch
	patchHeader  = "Fr-Patch"  // JSON of the rest
	sourceHeader = "Fr-Source" // JSON of the Scan that the patch was cut from
	reasonHeader = "Fr-Reason"
	padHeader    = "Fr-Pad"
)

// Schemas of messages.
const (
	scanSchema  = "flowrun.scan/1"
	patchSchema = "flowrun.patch/1"
	voidSchema  = "flowrun.void/1"
)

// Scan is the message that asks a worker for a scan's patches in one epoch.
type Scan struct {
	Name    string `json:"name"`              // Scan.ID of the publisher's list: the key of the patches' randomness
	Index   int    `json:"index"`             // in that list
	Epoch   int    `json:"epoch"`             //
	Epochs  int    `json:"epochs,omitempty"`  // of the whole run; 0: no end
	Scans   int    `json:"scans,omitempty"`   // in the epoch; 0: no end
	Path    string `json:"path,omitempty"`    // where the file is, for a worker that may read there
	Object  bool   `json:"object,omitempty"`  // its bytes are in the object store, under its digest
	Digest  string `json:"digest"`            // sha256:… of the file
	Size    int64  `json:"size"`              // bytes of the file
	Attempt int    `json:"attempt,omitempty"` // how often it was asked for again
}

// ID is the identity of the scan in its epoch.
func (s *Scan) ID(run string) ID { return ID{Run: run, Epoch: s.Epoch, Scan: Key(s.Name), Tile: -1} }

// check says what is wrong with a scan that came over the wire.
func (s *Scan) check() error {
	switch {
	case s.Name == "":
		return errors.New("name: is empty")
	case s.Index < 0 || s.Epoch < 0 || s.Epoch > most || s.Epochs < 0 || s.Scans < 0 || s.Scans > most || s.Attempt < 0 || s.Size < 0:
		return errors.New("a number is out of its bounds")
	case s.Epochs > 0 && s.Epoch >= s.Epochs:
		return fmt.Errorf("epoch %d of %d", s.Epoch, s.Epochs)
	case s.Path == "" && !s.Object:
		return errors.New("path: is empty")
	case !isDigest(s.Digest):
		return fmt.Errorf("digest: %.80q", s.Digest)
	}
	return nil
}

// once is the Nats-Msg-Id of what is made by an attempt: the server stores it once.
func once(id ID, attempt int) string {
	if attempt == 0 {
		return id.String()
	}
	return id.String() + "~" + strconv.Itoa(attempt)
}

// maxScanBytes is the most that a message of a scan takes.
const maxScanBytes = 64 << 10

// encode makes the message of a scan.
func (s *Scan) encode(n names) (*nats.Msg, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("scan %s: %w", s.Name, err)
	}
	m := nats.NewMsg(n.scanSubject())
	var err error
	if m.Data, err = json.Marshal(s); err != nil {
		return nil, err
	}
	if len(m.Data) > maxScanBytes-4096 {
		return nil, fmt.Errorf("scan %.80s: its message is %d bytes (want less than %d): shorten its path", s.Name, len(m.Data), maxScanBytes-4096)
	}
	id := s.ID(n.run)
	m.Header.Set(nats.MsgIdHdr, once(id, s.Attempt))
	m.Header.Set(schemaHeader, scanSchema)
	m.Header.Set(idHeader, id.String())
	return m, nil
}

// decodeScan reads a message of a scan.
func decodeScan(h nats.Header, body []byte) (*Scan, error) {
	if got := h.Get(schemaHeader); got != scanSchema {
		return nil, fmt.Errorf("schema %.40q (this flowrun reads %s)", got, scanSchema)
	}
	s, err := parseScan(body)
	if err != nil {
		return nil, err
	}
	id, err := ParseID(h.Get(idHeader))
	if err != nil {
		return nil, err
	}
	if want := s.ID(id.Run); id != want {
		return nil, fmt.Errorf("identity %s, but the scan's is %s", id, want)
	}
	return s, nil
}

func parseScan(body []byte) (*Scan, error) {
	s := new(Scan)
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	return s, nil
}
