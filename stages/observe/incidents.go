package observe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Incident is a line of the log that somebody who wasn't there wants to read.
type Incident struct {
	Time    time.Time
	Level   string // "info", "warn", "error"
	Event   string // "" for none
	Message string
	Detail  string // the line's other fields: "scan a.nii.gz, reason …"
}

// Incidents are the newest of a log: warnings, errors, and when the run started, stopped and paused. It is a writer of
// log lines, whole ones, and may be used by several goroutines.
type Incidents struct {
	mu   sync.Mutex
	list []Incident
}

// most is how many Incidents keeps.
const most = 200

// notable are the events that are incidents whatever their level.
func notable(event string) bool {
	return slices.Contains([]string{"start", "resume", "stop", "done", "stalled", "moving", "paused", "resumed"}, event)
}

// ReadIncidents are those of the log in dir.
func ReadIncidents(dir string) (*Incidents, error) {
	list := new(Incidents)
	for _, name := range []string{logName + ".1", logName} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = lines(f, func(line []byte) error {
			_, err := list.Write(line)
			return err
		})
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Write takes a line of the log. It never fails: what isn't such a line isn't an incident.
func (l *Incidents) Write(line []byte) (int, error) {
	var object map[string]any
	if json.Unmarshal(line, &object) != nil {
		return len(line), nil
	}
	var i Incident
	take := func(name string) string {
		text, _ := object[name].(string)
		delete(object, name)
		return text
	}
	i.Level, i.Event, i.Message = take("level"), take("event"), take("message")
	i.Time, _ = time.Parse(time.RFC3339, take("time"))
	delete(object, "stack") // the log has it
	if i.Level != "warn" && i.Level != "error" && !notable(i.Event) {
		return len(line), nil
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(object)) {
		switch v := object[name].(type) {
		case []any:
			var texts []string
			for _, x := range v {
				texts = append(texts, fmt.Sprint(x))
			}
			parts = append(parts, name+" "+strings.Join(texts, ", "))
		case float64:
			parts = append(parts, fmt.Sprintf("%s %.6g", name, v))
		default:
			parts = append(parts, fmt.Sprintf("%s %v", name, v))
		}
	}
	i.Detail = strings.Join(parts, "; ")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list = append(l.list, i); len(l.list) > most {
		l.list = slices.Clone(l.list[len(l.list)-most:])
	}
	return len(line), nil
}

// All are the incidents, the oldest first.
func (l *Incidents) All() []Incident {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}
