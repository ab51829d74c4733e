package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// Server serves pages about a run.
type Server struct {
	URL      string // of the page, with the port that was found where the address has port 0
	Loopback bool   // only this machine can reach it

	http *http.Server
	done chan struct{}
}

// Serve listens at address, as Options.Address gives it, and serves h until Close. On loopback only requests that name
// this machine are answered: a page from elsewhere can't have a browser here read what it shouldn't (DNS rebinding).
func Serve(address string, h http.Handler) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, cause(err))
	}
	s := &Server{done: make(chan struct{})}
	host, _, _ := net.SplitHostPort(address) // it listens there
	at, ok := listener.Addr().(*net.TCPAddr)
	if ok && at.IP.IsLoopback() {
		s.Loopback = true
		h = local(h)
	}
	if ok && (at.IP.IsUnspecified() || host == "localhost") {
		host = "localhost"
	}
	if ok {
		s.URL = fmt.Sprintf("http://%s/", net.JoinHostPort(host, fmt.Sprint(at.Port)))
	}
	s.http = &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(listener) // ends by Close; that no page is served is no reason to end a run
	}()
	return s, nil
}

// cause is what the system said.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

// Close gives requests that are being answered a second.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.done
}

// local answers only requests whose Host is this machine.
func local(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this page is for this machine: ask for localhost", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
