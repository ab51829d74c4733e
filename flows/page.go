package flows

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flowrun/flowrun/stages/codes"
	"github.com/flowrun/flowrun/stages/metrics"
	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/pipe"
	"github.com/flowrun/flowrun/stages/report"
)

// page is the run as it stands, without its pictures.
func (w *watch) page() *report.Page {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.finished.IsZero() {
		now = w.finished
	}
	r := w.run
	p := &report.Page{
		Name: r.job.run.Dir, State: w.state, Began: w.began, Written: now,
		Every:    time.Duration(w.options.Report * float64(time.Second)),
		Config:   string(r.job.resolved),
		Versions: r.versions(),
		Files:    r.files(),
	}
	p.Outcome, p.Advice, p.Command = w.sentence(now)
	p.Facts = w.facts(now)
	p.Charts = w.charts()
	p.Graph, p.Bound = w.graph()
	p.Tables = w.tables()
	for _, i := range slices.Backward(w.incidents.All()) {
		what := i.Message
		if i.Event != "" && i.Event != what {
			what = i.Event + ": " + what
		}
		p.Incidents = append(p.Incidents, report.Incident{Time: i.Time.Local(), Level: i.Level, What: what, Detail: i.Detail})
	}
	if r.quarantine != nil {
		bad := r.quarantine.All()
		for _, b := range bad[:min(len(bad), pageScans)] {
			p.Quarantine = append(p.Quarantine, report.Incident{What: b.Scan, Detail: b.Reason})
		}
		if more := len(bad) - len(p.Quarantine); more > 0 {
			p.Quarantine = append(p.Quarantine, report.Incident{What: fmt.Sprintf("and %s more", grouped(more)), Detail: "quarantine.jsonl has them all"})
		}
	}
	return p
}

// grouped is a whole number with its thousands apart.
func grouped(n int) string { return report.Count(int64(n)) }

func (w *watch) history() *observe.History {
	if w.run.metrics == nil {
		return nil
	}
	return w.run.metrics.History()
}

// value is a metric of the newest validation, of this session or those before.
func (w *watch) value(name string) (float64, bool) {
	if x, ok := w.values[name]; ok {
		return x, true
	}
	if h := w.history(); h != nil {
		return h.Last(name)
	}
	return 0, false
}

// best is a metric of the EMA weights where there are any, else of the raw ones, and which those are.
func (w *watch) best(name string) (x float64, weights string, ok bool) {
	if x, ok := w.value("val/ema_" + name); ok {
		return x, " with EMA weights", true
	}
	x, ok = w.value("val/" + name)
	return x, "", ok
}

// summary is the measures of whole volumes so far.
func (w *watch) summary() (metrics.Summary, bool) {
	if w.run.back == nil || w.run.back.study == nil {
		return metrics.Summary{}, false
	}
	s := w.run.back.study.Summary()
	return s, len(s.Scans) > 0
}

// facts are the figures that come first.
func (w *watch) facts(now time.Time) []report.Fact {
	var facts []report.Fact
	add := func(label, value, unit, note string) {
		facts = append(facts, report.Fact{Label: label, Value: value, Unit: unit, Note: note})
	}
	if s, ok := w.summary(); ok {
		add("PSNR", fmt.Sprintf("%.2f", s.Pooled.PSNR), "dB", beside("trilinear %.2f", s.Pooled.Trilinear.PSNR))
		add("SSIM", fmt.Sprintf("%.4f", s.Pooled.SSIM), "", beside("trilinear %.4f", s.Pooled.Trilinear.SSIM))
		if x := s.Pooled.HFRatio; !math.IsNaN(x) {
			add("Fine structure", fmt.Sprintf("%.2f", x), "of the scans', energy", fmt.Sprintf("error %.2f (HFEN)", s.Pooled.HFEN))
		}
		add("Mean absolute error", fmt.Sprintf("%.1f", s.Pooled.MAEHU), "HU", "")
		if b := s.Pooled.Code.Bits; !math.IsNaN(b) {
			add("Code", fmt.Sprintf("%.3g", b), "bits a voxel", "")
		}
	}
	if w.trains {
		facts = append(facts, w.learnt(now)...)
	}
	if w.peak > 0 {
		note := ""
		if w.run.parts.limit > 0 {
			note = "of " + report.Bytes(w.run.parts.limit) + " planned"
		}
		add("Memory, most", report.Bytes(w.peak), "", note)
	}
	if n := w.run.quarantine; n != nil && n.Len() > 0 {
		add("Scans left out", strconv.Itoa(n.Len()), "", "in quarantine")
	}
	return facts
}

// beside says a value to compare with, if there is one.
func beside(format string, x float64) string {
	if math.IsNaN(x) {
		return ""
	}
	return fmt.Sprintf(format, x)
}

// learnt are the figures of a training.
func (w *watch) learnt(now time.Time) []report.Fact {
	var facts []report.Fact
	add := func(label, value, unit, note string) {
		facts = append(facts, report.Fact{Label: label, Value: value, Unit: unit, Note: note})
	}
	baseline := func(format, name string) string {
		if x, ok := w.value(name); ok {
			return fmt.Sprintf(format, x)
		}
		return ""
	}
	if x, _, ok := w.best("psnr"); ok {
		add("Validation PSNR", fmt.Sprintf("%.2f", x), "dB", baseline("trilinear %.2f", "val/psnr_trilinear"))
	}
	if x, _, ok := w.best("ssim"); ok {
		add("SSIM", fmt.Sprintf("%.4f", x), "", baseline("trilinear %.4f", "val/ssim_trilinear"))
	}
	if x, _, ok := w.best("hf_ratio"); ok {
		add("Fine structure", fmt.Sprintf("%.2f", x), "of the scans', energy", "")
	}
	if x, _, ok := w.best("mae_hu"); ok {
		add("Mean absolute error", fmt.Sprintf("%.1f", x), "HU", "")
	}
	if x, _, ok := w.best("codebook_usage"); ok {
		add("Codes used", fmt.Sprintf("%.0f", 100*x), "%", fmt.Sprintf("of %s", grouped(w.run.job.model.Codes*w.run.job.model.Depth())))
	}
	if n := w.step.Step - w.first; n > 0 {
		end := now
		perHour := float64(n) / end.Sub(w.firstAt).Hours()
		note := ""
		if w.step.BoundBy != "" {
			note = "bound by " + w.step.BoundBy
		}
		add("Steps an hour", grouped(int(perHour)), "", note)
	}
	return facts
}

// graph is the stages with their edges, and what bounded the run.
func (w *watch) graph() (list []report.Stage, bound string) {
	now := w.ended
	var before []pipe.Stat
	if w.stats != nil {
		now = w.stats()
		if len(w.recent) > 0 {
			before = w.recent[0].stats
		}
	}
	if len(now) == 0 {
		return nil, ""
	}
	in := w.run.job.elements()
	for i, s := range now {
		if s.Stage == endStage {
			break
		}
		st := report.Stage{Name: s.Stage, State: s.State, In: s.In, Out: s.Out, Element: in[s.Stage]}
		if w.stats == nil {
			st.State = ""
		}
		busy, starved, blocked := s.Busy, s.BlockedIn, s.BlockedOut
		if i < len(before) && before[i].Stage == s.Stage {
			busy, starved, blocked = busy-before[i].Busy, starved-before[i].BlockedIn, blocked-before[i].BlockedOut
		}
		if all := float64(busy + starved + blocked); all > 0 {
			st.Busy, st.Starved, st.Blocked = float64(busy)/all, float64(starved)/all, float64(blocked)/all
		}
		if w.stats != nil {
			st.Bytes, st.Limit = s.Bytes, w.limit(st.Element)
		}
		if st.Limit > 0 && st.Element == scans { // what the budget let in, wherever it is by now
			st.Bytes = w.run.budget.InUse()
		}
		list = append(list, st)
	}
	return list, w.boundBy(now)
}

// limit is the budget that elements of a kind count against; 0 where they have none.
func (w *watch) limit(element string) int64 {
	switch element {
	case scans, volumes:
		return w.run.budget.Limit()
	case batches:
		return w.run.parts.batches
	case snapshots:
		return w.run.parts.snapshot
	}
	return 0
}

// boundBy says what bounded the run.
func (w *watch) boundBy(now []pipe.Stat) string {
	by := observe.BoundBy(nil, now)
	if by == "" {
		return ""
	}
	text := "Since it was started, the run was bound by " + by + "."
	h := w.history()
	if h == nil {
		return text
	}
	bounds, all := h.Bounds(), 0
	for _, n := range bounds {
		all += n
	}
	names := slices.SortedFunc(maps.Keys(bounds), func(a, b string) int { return cmp.Or(bounds[b]-bounds[a], strings.Compare(a, b)) })
	var parts []string
	for _, name := range names {
		if share := 100 * bounds[name] / all; share > 0 {
			parts = append(parts, fmt.Sprintf("%s %d %%", name, share))
		}
	}
	if len(parts) > 1 {
		text += " Of all its steps: " + strings.Join(parts, ", ") + "."
	}
	return text
}

// elements is what each stage of the graph takes, those between the file's included.
func (j *Job) elements() map[string]string {
	in := map[string]string{"vet": volumes}
	for _, p := range j.pieces {
		in[p.label] = p.in
		if p.name == "read" {
			in[p.label] = scans
		}
	}
	return in
}

// worst is how many scans a table lists.
const worst = 12

// tables are the scans with the lowest PSNR.
func (w *watch) tables() []report.Table {
	if s, ok := w.summary(); ok {
		rows := slices.Clone(s.Scans)
		slices.SortStableFunc(rows, func(a, b metrics.Row) int { return cmp.Compare(a.PSNR, b.PSNR) })
		t := report.Table{Title: "Scans, the worst first", Head: []string{"scan", "PSNR, dB", "SSIM", "HF ratio", "MAE, HU", "trilinear, dB"},
			Note: "measures.csv has all of them and all measures."}
		for _, r := range rows[:min(worst, len(rows))] {
			t.Rows = append(t.Rows, []string{r.ID, number("%.2f", r.PSNR), number("%.4f", r.SSIM), number("%.2f", r.HFRatio), number("%.1f", r.MAEHU), number("%.2f", r.Trilinear.PSNR)})
		}
		return []report.Table{t}
	}
	if len(w.scans) == 0 {
		return nil
	}
	rows := slices.Clone(w.scans)
	slices.SortStableFunc(rows, func(a, b metrics.ScanResult) int { return cmp.Compare(a.PSNR, b.PSNR) })
	t := report.Table{Title: "Held-out scans, the worst first", Head: []string{"scan", "PSNR, dB", "SSIM", "HF ratio", "MAE, HU"}}
	for _, r := range rows[:min(worst, len(rows))] {
		t.Rows = append(t.Rows, []string{r.ID, number("%.2f", r.PSNR), number("%.4f", r.SSIM), number("%.2f", r.HFRatio), number("%.1f", r.MAEHU)})
	}
	return []report.Table{t}
}

// number is x, or a dash where there is none.
func number(format string, x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return "–"
	}
	return fmt.Sprintf(format, x)
}

// versions say what ran, on what.
func (r *run) versions() []report.Pair {
	v, commit := Version()
	if commit != "" {
		v += ", commit " + commit
	}
	all := []report.Pair{{Name: "flowrun", Value: v}, {Name: "Go", Value: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH}}
	if r.engine != nil {
		all = append(all, report.Pair{Name: "Engine", Value: r.engine.Name()})
	}
	if r.session != nil {
		all = append(all, report.Pair{Name: "Model", Value: fmt.Sprintf("%.3g million parameters, %s codes (%s), %d for %s voxels",
			float64(r.session.Plan().Parameters)/1e6, grouped(r.job.model.Codes), r.job.model.Quantizer, r.job.model.Depth(), list(r.job.model.Downsample))})
	}
	if d := r.data; d != nil {
		text := fmt.Sprintf("%d", len(d.all))
		if r.loop != nil {
			text = fmt.Sprintf("%d to train on, %d held out; %s patches an epoch", len(d.train), len(d.held), grouped(d.perEpoch()))
		}
		all = append(all, report.Pair{Name: "Scans", Value: text})
	}
	return append(all, report.Pair{Name: "Memory", Value: r.parts.String()}, report.Pair{Name: "Seed", Value: strconv.FormatUint(r.job.run.Seed, 10)})
}

// files say what lies in the run's folder.
func (r *run) files() []report.Pair {
	list := []report.Pair{
		{Name: "config.yaml", Value: "the configuration with every default"},
		{Name: "log.jsonl", Value: "what happened"},
	}
	if r.loop != nil {
		list = append(list,
			report.Pair{Name: "metrics.jsonl, .csv", Value: "a row for each step and each validation"},
			report.Pair{Name: "incidents.jsonl", Value: "where training went wrong, and what was done about it"},
			report.Pair{Name: "events.out.tfevents.*", Value: "the same for TensorBoard"},
			report.Pair{Name: "samples/", Value: "pictures of validations"},
			report.Pair{Name: "checkpoints/", Value: "weights and all that the next step depends on; best and last are links"})
	}
	if r.back != nil && r.back.study != nil {
		list = append(list,
			report.Pair{Name: "measures.json, .csv", Value: "the measures of each scan"},
			report.Pair{Name: "pictures/", Value: "planes of large errors"})
	}
	if _, ok := option[codes.Options](r.job); ok {
		list = append(list, report.Pair{Name: "*.safetensors", Value: "codes"})
	}
	return list
}
