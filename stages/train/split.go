package train

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/files"
	"github.com/flowrun/flowrun/stages/volume"
)

// Split divides scans into those that train and those that validate, each in the order given. All scans of a patient
// fall on one side, copies of a scan with it, and which side depends on the patient's name only: a scan that is added later moves no other one
// (but where share alone would leave a side empty, the patient nearest to it is moved there).
func Split(scans []*volume.Scan, o Validate) (train, held []*volume.Scan, err error) {
	group, err := grouping(o.Group)
	if err != nil {
		return nil, nil, fmt.Errorf("validate.group: %w", err)
	}
	patterns, err := listed(o.Scans)
	if err != nil {
		return nil, nil, fmt.Errorf("validate.scans: %w", err)
	}
	patients := map[string]bool{} // held out?
	named := make([]bool, len(scans))
	names, first := make([]string, len(scans)), map[string]string{}
	same := sets{}
	for i, s := range scans {
		if names[i], err = group(s); err != nil {
			return nil, nil, fmt.Errorf("validate.group: %w", err)
		}
		first[s.ID] = names[i]
		if of, ok := first[s.Copy]; ok {
			same.join(of, names[i])
		}
	}
	for i, s := range scans {
		names[i] = same.of(names[i])
		named[i] = matches(patterns, s)
		patients[names[i]] = patients[names[i]] || named[i]
	}
	if len(patterns) == 0 {
		hold(patients, o.Share)
	} else if !slices.Contains(named, true) {
		return nil, nil, fmt.Errorf("validate.scans: none of the %d scans matches %s (they are named as %s)",
			len(scans), strings.Join(o.Scans, ", "), scans[0].ID)
	}
	for i, s := range scans {
		if patients[names[i]] {
			held = append(held, s)
		} else {
			train = append(train, s)
		}
	}
	if len(train) == 0 {
		return nil, nil, fmt.Errorf("validate: all %d scans are held out; none is left to train on", len(scans))
	}
	return train, held, nil
}

// sets are patients that are one, by copies of their scans: each leads to another, the last to none.
type sets map[string]string

// of is the patient that stands for its set.
func (s sets) of(name string) string {
	for s[name] != "" {
		name = s[name]
	}
	return name
}

// join makes two sets one, for which the first's stands.
func (s sets) join(a, b string) {
	if a, b = s.of(a), s.of(b); a != b {
		s[b] = a
	}
}

// hold marks the patients whose hash, as a number in [0, 1), is below share.
func hold(patients map[string]bool, share float64) {
	if share == 0 || len(patients) < 2 {
		return
	}
	place := func(name string) float64 {
		return float64(volume.Key(0, "validate", name)>>11) / (1 << 53)
	}
	order := make([]string, 0, len(patients))
	for name := range patients {
		patients[name] = place(name) < share
		order = append(order, name)
	}
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
	})
	patients[order[0]] = true
	patients[order[len(order)-1]] = false
}

// mark is what Windows programs put in front of a text file.
const mark = "\ufeff"

// listed replaces each list file (*.txt) by its lines.
func listed(patterns []string) ([]string, error) {
	var all []string
	for _, p := range patterns {
		if !strings.HasSuffix(p, ".txt") {
			all = append(all, p)
			continue
		}
		text, err := files.Read(p, files.Most)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		before := len(all)
		for line := range strings.Lines(strings.TrimPrefix(string(text), mark)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				all = append(all, line)
			}
		}
		if len(all) == before {
			return nil, fmt.Errorf("%s: names no scan", p)
		}
	}
	return all, nil
}

func matches(patterns []string, s *volume.Scan) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := regexp.MatchString("^"+strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*")+"$", s.ID)
		return ok || p == s.Path
	})
}

// grouping returns the function that names a scan's patient.
func grouping(rule string) (func(*volume.Scan) (string, error), error) {
	if rule == "" {
		return func(s *volume.Scan) (string, error) { return s.ID, nil }, nil
	}
	if i := strings.LastIndex(rule, ".csv#"); i >= 0 {
		return table(rule[:i+len(".csv")], rule[i+len(".csv#"):])
	}
	re, err := regexp.Compile(rule)
	if err != nil {
		return nil, err
	}
	return func(s *volume.Scan) (string, error) {
		m := re.FindStringSubmatch(s.Path)
		if m == nil {
			return "", fmt.Errorf("%q doesn't match %s", rule, s.Path)
		}
		patient := m[min(1, len(m)-1)]
		if patient == "" {
			return "", fmt.Errorf("%q finds no patient in %s", rule, s.Path)
		}
		return patient, nil
	}, nil
}

// table reads a CSV file with a column scan (a scan's ID, path or file name) and the column that names its patient.
func table(file, column string) (func(*volume.Scan) (string, error), error) {
	text, err := files.Read(file, files.Most)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(text), mark))).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("%s: empty (want a header with the columns scan and %s)", file, column)
	}
	key, val := slices.Index(rows[0], "scan"), slices.Index(rows[0], column)
	if key < 0 || val < 0 {
		return nil, fmt.Errorf("%s: has the columns %s (want scan and %s)", file, strings.Join(rows[0], ", "), column)
	}
	patients := map[string]string{}
	for _, r := range rows[1:] {
		patients[r[key]] = r[val]
	}
	return func(s *volume.Scan) (string, error) {
		for _, name := range []string{s.ID, s.Path, path.Base(s.ID)} {
			p, ok := patients[name]
			switch {
			case ok && p == "":
				return "", fmt.Errorf("%s: no patient for scan %s", file, s.ID)
			case ok:
				return p, nil
			}
		}
		return "", fmt.Errorf("%s: no row for scan %s", file, s.ID)
	}, nil
}
