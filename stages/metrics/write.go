package metrics

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/flowrun/flowrun/stages/files"
)

// Write writes measures.json and measures.csv into a folder, which it makes if need be. Each file appears whole or not
// at all, and replaces one that is there.
func (s Summary) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	err := files.Write(filepath.Join(dir, "measures.json"), func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	})
	if err != nil {
		return err
	}
	return files.Write(filepath.Join(dir, "measures.csv"), s.CSV)
}

// CSV writes a row for each scan and the rows pooled and mean, with a head. The first column says which it is: scan,
// pooled or mean. What wasn't measured is empty.
func (s Summary) CSV(w io.Writer) error {
	c := csv.NewWriter(w)
	head := []string{"row", "id", "nx", "ny", "nz", "window_low_hu", "window_high_hu"}
	for _, f := range s.Pooled.fields() {
		head = append(head, f.key)
	}
	records := [][]string{head}
	record := func(name, id string, r Row) {
		line := []string{name, id}
		for _, n := range r.Dims {
			if n == 0 {
				line = append(line, "")
			} else {
				line = append(line, strconv.Itoa(n))
			}
		}
		line = append(line, text(s.Window[0]), text(s.Window[1]))
		for _, f := range r.fields() {
			line = append(line, text(f.value))
		}
		records = append(records, line)
	}
	for _, r := range s.Scans {
		record("scan", r.ID, r)
	}
	record("pooled", "", s.Pooled)
	record("mean", "", s.Mean)
	return c.WriteAll(records)
}

func text(value any) string {
	if x, ok := value.(float64); ok {
		if !finite(x) {
			return ""
		}
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return fmt.Sprint(value)
}
