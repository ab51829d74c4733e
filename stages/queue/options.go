package queue

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Options are the keys of the block queue.
type Options struct {
	Name    string  `key:"name" default:"" example:"ctpa" doc:"What this run is called on the server: letters, digits, - and _. Publishers, workers and the trainer of a run share it."`
	URL     string  `key:"url" default:"" example:"nats://gpu:4222" doc:"The NATS server, or several parted by commas. Empty starts one inside this process. It holds no password: use context, creds, nkey or tls."`
	Context string  `key:"context" default:"" doc:"A context of the nats command line tool, by name or by file, that holds url and credentials."`
	Creds   string  `key:"creds" default:"" doc:"A credentials file (.creds)."`
	NKey    string  `key:"nkey" default:"" doc:"A file with an NKey seed."`
	TLS     TLS     `key:"tls" doc:"Certificates."`
	Server  Server  `key:"server" doc:"The server inside this process, where url is empty."`
	Bytes   int64   `key:"bytes" default:"0" unit:"bytes" min:"0" doc:"The most that patches may take on the server's disk. Workers wait when it is reached. 0 is a quarter more than the trainer can hold and fetch ahead."`
	Scans   int     `key:"scans" default:"64" min:"1" doc:"Scans that wait for a worker at most; publishers wait beyond that."`
	Workers int     `key:"workers" default:"16" unit:"scans" min:"1" doc:"Scans that all workers together prepare at a time."`
	Objects int64   `key:"objects" default:"0" unit:"bytes" min:"0" doc:"Room on the server for scans that are published as bytes; 0 makes none."`
	Tries   int     `key:"tries" default:"10" min:"1" doc:"Deliveries after which a scan that no worker finishes is given up and becomes a dead letter."`
	AckWait float64 `key:"ack_wait" default:"60" unit:"seconds" min:"1" max:"3600" doc:"A process that hasn't been heard of for so long has its messages given to another. Work that takes longer is reported in between."`
}

// TLS are the keys of the block tls.
type TLS struct {
	CA   string `key:"ca" default:"" doc:"Certificates of the authorities that the server's is checked against; empty trusts those of the system."`
	Cert string `key:"cert" default:"" doc:"This client's certificate."`
	Key  string `key:"key" default:"" doc:"The key of cert."`
}

// Server are the keys of the block server.
type Server struct {
	Listen string `key:"listen" default:"" example:"127.0.0.1:4222" doc:"Address at which other processes reach it; empty is none. Beyond this machine it wants config, or anybody could read the scans."`
	Config string `key:"config" default:"" doc:"A configuration file of nats-server: accounts, permissions, TLS. listen, the folder and limits of JetStream are taken from here where it leaves them out."`
	Dir    string `key:"dir" default:"" doc:"Folder of its store; empty is queue in the run's folder."`
	Disk   int64  `key:"disk" default:"0" unit:"bytes" min:"0" doc:"The most that its store takes; 0 is four fifths of what is free."`
}

var nameOK = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// Check finds what no single key shows.
func (o *Options) Check() error {
	if o.Name != "" && !nameOK.MatchString(o.Name) {
		return fmt.Errorf("name: %q: want up to 32 letters, digits, - and _", o.Name)
	}
	for _, one := range strings.Split(o.URL, ",") {
		if err := checkURL(strings.TrimSpace(one)); err != nil {
			return err
		}
	}
	if (o.TLS.Cert == "") != (o.TLS.Key == "") {
		return errors.New("tls: cert and key go together")
	}
	if o.External() && o.Server != (Server{}) {
		return errors.New("server: is of no use beside url or context, which name another one; leave it out (behind a file: queue.server={})")
	}
	return o.Server.check()
}

// checkURL refuses a URL with a password in it, without repeating it.
func checkURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case strings.Contains(text, "@"):
		return errors.New("url: holds a user or password, which would end up in logs; use context, creds or nkey")
	case err != nil:
		return errors.New("url: isn't one (want nats://host:4222 or tls://host:4222)")
	case u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss":
		return fmt.Errorf("url: %s: want nats://host:4222 or tls://host:4222", text)
	}
	return nil
}

func (s *Server) check() error {
	if s.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(s.Listen)
	if err != nil {
		return fmt.Errorf("server: listen: %q: want host:port, as in 127.0.0.1:4222", s.Listen)
	}
	if ip := net.ParseIP(host); s.Config == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("server: listen: %s can be reached from other machines, by anybody: give server.config with accounts, or listen at 127.0.0.1", s.Listen)
	}
	return nil
}

// External says that the server is another process.
func (o *Options) External() bool { return o.URL != "" || o.Context != "" }

func (o *Options) ackWait() time.Duration { return time.Duration(o.AckWait * float64(time.Second)) }
