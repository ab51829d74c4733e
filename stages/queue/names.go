package queue

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Consumers: one of each stream, shared by all who take from it.
const (
	prepName  = "prep"
	trainName = "train"
)

// names are a run's streams and subjects.
type names struct{ run string }

func (n names) scanStream() string   { return "FR_" + n.run + "_SCAN" }
func (n names) patchStream() string  { return "FR_" + n.run + "_PATCH" }
func (n names) deadStream() string   { return "FR_" + n.run + "_DEAD" }
func (n names) bucket() string       { return "FR_" + n.run + "_BLOB" }
func (n names) scanSubject() string  { return "fr." + n.run + ".scan.ref" }
func (n names) patchSubject() string { return "fr." + n.run + ".patch.train" }
func (n names) deadSubject() string  { return "fr." + n.run + ".dead" } // .scan or .patch behind it
func (n names) here() string         { return "fr." + n.run + ".here" } // who is connected

// Key stands for a scan's name in subjects and identities, where no name of a patient belongs: 16 hex digits of its SHA-256.
func Key(scan string) string {
	sum := sha256.Sum256([]byte(scan))
	return hex.EncodeToString(sum[:8])
}

// ID is the identity of a patch, or with Tile < 0 of a scan in an epoch. It is not where a message lies in a stream, and
// the same after any crash.
type ID struct {
	Run   string
	Epoch int
	Scan  string // Key of its name
	Tile  int
}

func (id ID) String() string {
	s := id.Run + "/" + strconv.Itoa(id.Epoch) + "/" + id.Scan
	if id.Tile >= 0 {
		s += "/" + strconv.Itoa(id.Tile)
	}
	return s
}

// ParseID reads what String wrote.
func ParseID(text string) (ID, error) {
	bad := func() (ID, error) {
		return ID{}, fmt.Errorf("identity %.80q: want run/epoch/scan or run/epoch/scan/tile", text)
	}
	parts := strings.Split(text, "/")
	if len(parts) != 3 && len(parts) != 4 || !nameOK.MatchString(parts[0]) || !isKey(parts[2]) {
		return bad()
	}
	id := ID{Run: parts[0], Scan: parts[2], Tile: -1}
	var err error
	if id.Epoch, err = count(parts[1]); err != nil {
		return bad()
	}
	if len(parts) == 4 {
		if id.Tile, err = count(parts[3]); err != nil {
			return bad()
		}
	}
	if id.String() != text {
		return bad()
	}
	return id, nil
}

// most bounds counts that a message states, so that a wrong one doesn't cost memory.
const most = 1 << 20

// count reads a number of things: 0 ≤ n ≤ most.
func count(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%.20q: want a number up to %d", text, most)
	}
	return n, nil
}

func isKey(text string) bool {
	return len(text) == 16 && strings.Trim(text, "0123456789abcdef") == ""
}

const digestPrefix = "sha256:"

// NoDigest stands for that of a file that couldn't be read.
const NoDigest = digestPrefix + "0000000000000000000000000000000000000000000000000000000000000000"

func isDigest(text string) bool {
	hexa, ok := strings.CutPrefix(text, digestPrefix)
	return ok && len(hexa) == 64 && strings.Trim(hexa, "0123456789abcdef") == ""
}
