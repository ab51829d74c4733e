package flows

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/read"
	"github.com/flowrun/flowrun/stages/train"
	"github.com/flowrun/flowrun/stages/volume"
)

// openQuarantine reads which scans are set aside. Where nothing trains they are tried again: they may have been mended.
func (r *run) openQuarantine() (err error) {
	path := r.file("quarantine.jsonl")
	if _, trains := option[train.Options](r.job); !trains {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if r.quarantine, err = read.OpenQuarantine(path); err != nil {
		return err
	}
	if n := r.quarantine.Len(); n > 0 {
		r.log.Warn().Str("event", "quarantine").Int("scans", n).Str("list", path).
			Msg("scans that were set aside stay out of this run, mended or not; a new run.dir (with train.init) takes them in again")
	}
	return nil
}

// setAside quarantines a scan. It is an error where too many are bad. Of a training run the one too many isn't in the list,
// which holds to the run's end: what ends it now (a folder that isn't mounted, say) may be mended.
func (r *run) setAside(b read.Bad) error {
	list := r.quarantine.All()
	if !r.quarantine.Has(b.Scan) {
		list = append(list, b)
	}
	if _, trains := option[train.Options](r.job); trains {
		if err := r.tooManyBad(list); err != nil {
			return err
		}
	}
	if err := r.patiently(func() error { return r.quarantine.Add(b) }); err != nil {
		return err
	}
	r.log.Warn().Str("event", "quarantine").Str("scan", b.Scan).Str("reason", b.Reason).Msg("scan set aside")
	return r.tooManyBad(list)
}

func (r *run) noneLeft(list []read.Bad) error {
	what := "training scans"
	if r.loop == nil {
		what = "scans"
	}
	return dataErrorf("all %d %s are bad; %s", len(r.data.train), what, r.reasons(list))
}

// reasons says of the last of bad scans what is wrong, and where the others' reasons are.
func (r *run) reasons(list []read.Bad) string {
	last := list[len(list)-1]
	text := "the last: " + last.Scan + ": " + strings.TrimPrefix(last.Reason, last.Path+": ")
	if r.quarantine.Len() > 0 {
		text += "; see " + r.file("quarantine.jsonl")
	}
	return text
}

// tooManyBad is an error where the list of bad scans is longer than bad_share allows or has all that there are.
func (r *run) tooManyBad(list []read.Bad) error {
	o, _ := option[read.Options](r.job)
	if l, ok := option[codes.LoadOptions](r.job); ok {
		o = &read.Options{BadShare: l.BadShare}
	}
	unlisted := 0
	for _, b := range list {
		if !slices.ContainsFunc(r.data.all, func(s *volume.Scan) bool { return s.ID == b.Scan }) {
			unlisted++
		}
	}
	if err := o.TooMany(len(list), len(r.data.all)+max(unlisted, len(r.data.bad))); err != nil {
		return dataErrorf("%w; %s", err, r.reasons(list))
	}
	bad := func(s *volume.Scan) bool {
		return slices.ContainsFunc(list, func(b read.Bad) bool { return b.Scan == s.ID })
	}
	if n := len(r.data.train); n > 0 && !slices.ContainsFunc(r.data.train, func(s *volume.Scan) bool { return !bad(s) }) {
		return r.noneLeft(list)
	}
	return nil
}

// warn logs what was odd about a file, once a run.
func (r *run) warn(v *volume.Volume) {
	if len(v.Warnings) == 0 || r.warned[v.Scan.ID] {
		return
	}
	r.warned[v.Scan.ID] = true
	r.odd(v.Scan, v.Warnings)
}

func (r *run) odd(scan *volume.Scan, warnings []string) {
	r.log.Warn().Str("scan", scan.ID).Strs("warnings", warnings).Msg("scan read with warnings")
}
