package flows

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/flowrun/flowrun/stages/observe"
	"github.com/flowrun/flowrun/stages/report"
)

// serve serves the live page, /metrics, /healthz and /readyz, if the run is to be watched.
func (w *watch) serve() error {
	address, err := w.options.Address()
	if err != nil || address == "" {
		return err // none: options.Check has seen it
	}
	w.exporter = observe.NewExporter(w.reading)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.servePage((*report.Page).Write))
	mux.HandleFunc("GET /live", w.servePage((*report.Page).WriteBody))
	mux.HandleFunc("GET /samples/", w.servePicture)
	mux.HandleFunc("GET /pictures/", w.servePicture)
	mux.HandleFunc("GET /healthz", w.serveHealth)
	mux.HandleFunc("GET /readyz", w.serveReady)
	mux.Handle("GET /metrics", w.exporter.Handler())
	if w.server, err = observe.Serve(address, mux); err != nil {
		return configErrorf("observe.http: %w; set it to an address that is free (127.0.0.1:0 finds a port)", err)
	}
	e := w.run.log.Info()
	if !w.server.Loopback {
		e = w.run.log.Warn().Str("note", "other machines may see this page, with its pictures of scans")
	}
	e.Str("event", "serving").Str("url", w.server.URL).Msg("the run can be watched")
	return nil
}

// servePage serves the page, or the part of it that changes.
func (w *watch) servePage(write func(*report.Page, io.Writer) error) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		if !w.running() {
			rw.Header().Set("Refresh", "2")
			http.Error(rw, "the run is being prepared", http.StatusServiceUnavailable)
			return
		}
		page := w.page()
		page.Live = true
		page.Pictures = w.linked()
		var b bytes.Buffer
		if err := write(page, &b); err != nil {
			http.Error(rw, "the page can't be made", http.StatusInternalServerError)
			return
		}
		h := rw.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", report.Policy()+"; frame-ancestors 'self'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		_, _ = rw.Write(b.Bytes())
	}
}

// running says that there is a graph to look at, or was one.
func (w *watch) running() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats != nil || w.ended != nil
}

// linked are the pictures as the live page shows them.
func (w *watch) linked() []report.Picture {
	w.mu.Lock()
	files := report.Spread(slices.Clone(w.pictures), pagePictures)
	w.mu.Unlock()
	slices.Reverse(files)
	list := make([]report.Picture, len(files))
	for i, path := range files {
		link := (&url.URL{Path: w.link(path)}).EscapedPath()
		list[i] = report.Picture{Caption: w.caption(path), Source: template.URL(link), Link: link} //nolint:gosec // a path below the page
	}
	return list
}

// servePicture serves a picture that the run drew, and no other file.
func (w *watch) servePicture(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	i := slices.IndexFunc(w.pictures, func(path string) bool { return "/"+w.link(path) == r.URL.Path })
	path := ""
	if i >= 0 {
		path = w.pictures[i]
	}
	w.mu.Unlock()
	if path == "" {
		http.NotFound(rw, r)
		return
	}
	rw.Header().Set("Content-Type", "image/png")
	rw.Header().Set("X-Content-Type-Options", "nosniff")
	rw.Header().Set("Cache-Control", "private, max-age=3600")
	http.ServeFile(rw, r, path)
}

// serveHealth says whether the process does its work: it fails while nothing moves.
func (w *watch) serveHealth(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	state := w.state
	w.mu.Unlock()
	if state == report.Stalled {
		http.Error(rw, string(state), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(rw, "ok")
}

// serveReady says whether the graph runs.
func (w *watch) serveReady(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	state, runs := w.state, w.stats != nil
	w.mu.Unlock()
	switch {
	case !runs && state == report.Running:
		http.Error(rw, "being prepared", http.StatusServiceUnavailable)
	case state != report.Running:
		http.Error(rw, string(state), http.StatusServiceUnavailable)
	default:
		_, _ = fmt.Fprintln(rw, "ok")
	}
}

// reading is what a scrape sees.
func (w *watch) reading() observe.Reading {
	v, _ := Version()
	r := observe.Reading{Dir: w.run.job.run.Dir, Version: v, Free: -1, Memory: -1}
	for _, s := range []report.State{report.Running, report.Paused, report.Stalled, report.Done, report.Failed, report.Diverged, report.Interrupted} {
		r.States = append(r.States, string(s))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r.State = string(w.state)
	r.Progress = float64(w.moved.UnixMilli()) / 1000
	if w.stats == nil {
		return r
	}
	r.Step, r.Total, r.Validation, r.Saved = w.step, w.total, w.values, w.savedAt
	if w.step.Step == w.first {
		r.Step = observe.Step{} // of this process none yet
	}
	r.Stages, r.Limit, r.InUse = w.stats(), w.run.budget.Limit(), w.run.budget.InUse()
	r.Quarantined = w.run.quarantine.Len()
	r.Queue = w.run.queues.reading()
	if free, ok := observe.FreeSpace(w.run.job.run.Dir); ok {
		r.Free = free
	}
	if free, total := w.run.available(); total > 0 {
		r.Memory = free
	}
	return r
}

// closeServer ends the live page.
func (w *watch) closeServer() {
	if w.server != nil {
		w.server.Close()
	}
}
