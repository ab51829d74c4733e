package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/flowrun/flowrun/stages/files"
)

// natsContext is what flowrun reads of a context file of the nats command line tool.
type natsContext struct {
	URL         string `json:"url"`
	Token       string `json:"token"`
	User        string `json:"user"`
	Password    string `json:"password"`
	Creds       string `json:"creds"`
	NKey        string `json:"nkey"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
	InboxPrefix string `json:"inbox_prefix"`
	TLSFirst    bool   `json:"tls_first"`

	// What flowrun can't do, so that it is refused rather than passed over.
	NSC    string `json:"nsc"`
	Domain string `json:"jetstream_domain"`
	API    string `json:"jetstream_api_prefix"`
	Socks  string `json:"socks_proxy"`
	Jwt    string `json:"user_jwt"`
}

// contextFile is where a context is: name may be a file already.
func contextFile(name string) (string, error) {
	if strings.HasSuffix(name, ".json") {
		return name, nil
	}
	if strings.ContainsAny(name, `/\`) || strings.Contains(name, "..") {
		return "", fmt.Errorf("context: %s: want a name or a .json file", name)
	}
	dir := os.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("context: %w", err)
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "nats", "context", name+".json"), nil
}

// readContext reads a context. Errors hold nothing of what is in it.
func readContext(name string) (*natsContext, error) {
	path, err := contextFile(name)
	if err != nil {
		return nil, err
	}
	text, err := files.Read(path, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("context: %s: %w", path, plain(err))
	}
	c := new(natsContext)
	if json.Unmarshal(text, c) != nil {
		return nil, fmt.Errorf("context: %s: isn't JSON as nats context writes it", path)
	}
	for key, value := range map[string]string{"nsc": c.NSC, "jetstream_domain": c.Domain, "jetstream_api_prefix": c.API, "socks_proxy": c.Socks, "user_jwt": c.Jwt} {
		if value != "" {
			return nil, fmt.Errorf("context: %s: has %s, which flowrun doesn't follow", path, key)
		}
	}
	if c.URL == "" {
		return nil, fmt.Errorf("context: %s: names no url", path)
	}
	for _, one := range strings.Split(c.URL, ",") {
		if err := checkURL(strings.TrimSpace(one)); err != nil {
			return nil, fmt.Errorf("context: %s: %w", path, err)
		}
	}
	for _, file := range []*string{&c.Creds, &c.NKey, &c.Cert, &c.Key, &c.CA} {
		*file = expand(*file)
	}
	return c, nil
}

// expand replaces ~ and variables in a path.
func expand(path string) string {
	path = os.ExpandEnv(path)
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return filepath.Join(home, rest)
		}
	}
	return path
}

// credentials gives the server's URL and the options that o and its context come to. Keys of o go before the context's.
func (o *Options) credentials() (string, []nats.Option, error) {
	c := new(natsContext)
	if o.Context != "" {
		var err error
		if c, err = readContext(o.Context); err != nil {
			return "", nil, err
		}
	}
	url := o.URL
	if url == "" {
		url = c.URL
	}
	or := func(a, b string) string {
		if a != "" {
			return expand(a)
		}
		return b
	}
	creds, nkey := or(o.Creds, c.Creds), or(o.NKey, c.NKey)
	ca, cert, key := or(o.TLS.CA, c.CA), or(o.TLS.Cert, c.Cert), or(o.TLS.Key, c.Key)
	var list []nats.Option
	for what, path := range map[string]string{"creds": creds, "nkey": nkey, "tls.ca": ca, "tls.cert": cert, "tls.key": key} {
		if path == "" {
			continue
		}
		if f, err := os.Open(path); err != nil {
			return "", nil, fmt.Errorf("%s: %s: %w", what, path, plain(err))
		} else if err := f.Close(); err != nil {
			return "", nil, err
		}
	}
	switch {
	case creds != "":
		if err := checkCreds(creds); err != nil {
			return "", nil, err
		}
		list = append(list, nats.UserCredentials(creds))
	case nkey != "":
		opt, err := nats.NkeyOptionFromSeed(nkey)
		if err != nil {
			return "", nil, fmt.Errorf("nkey: %s: isn't a file with a seed", nkey) // the library's words may hold it
		}
		list = append(list, opt)
	case c.User != "":
		list = append(list, nats.UserInfo(c.User, c.Password))
	case c.Token != "":
		list = append(list, nats.Token(c.Token))
	}
	if ca != "" {
		list = append(list, nats.RootCAs(ca))
	}
	if cert != "" {
		list = append(list, nats.ClientCert(cert, key))
	}
	if c.TLSFirst {
		list = append(list, nats.TLSHandshakeFirst())
	}
	return url, list, nil
}

// checkCreds refuses what isn't a credentials file; its words hold nothing of what is in it.
func checkCreds(path string) error {
	text, err := files.Read(path, 1<<20)
	if err != nil {
		return fmt.Errorf("creds: %s: %w", path, plain(err))
	}
	_, bad := nkeys.ParseDecoratedJWT(text)
	pair, err := nkeys.ParseDecoratedUserNKey(text)
	if err == nil {
		pair.Wipe()
	}
	if bad != nil || err != nil {
		return fmt.Errorf("creds: %s: doesn't hold a user's JWT and seed, as nsc generate creds writes them", path)
	}
	return nil
}

var secrets = regexp.MustCompile(`//[^/@\s"]*@|(?i)(pass(word)?|token|seed|secret)("?\s*[:=]\s*"?)[^\s",}]+|\bS[ACNOUX][A-Z2-7]{40,}|eyJ[A-Za-z0-9_.-]{20,}`)

// redact takes out of text what looks like a password, a token, a seed or a JWT.
func redact(text string) string {
	return secrets.ReplaceAllStringFunc(text, func(s string) string {
		if s[:2] == "//" {
			return "//***@"
		}
		return "***"
	})
}

// expired says that credentials were good until now.
func expired(err error) bool {
	return errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAccountAuthExpired) || strings.Contains(strings.ToLower(err.Error()), "authentication expired")
}

// refusal says whether an error of the connection is one that no retry mends: a user who isn't known, or who may not.
func refusal(err error) bool {
	for _, e := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired,
		nats.ErrPermissionViolation, nats.ErrMaxAccountConnectionsExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "permissions violation") || strings.Contains(text, "authorization violation") ||
		strings.Contains(text, "authentication expired") || strings.Contains(text, "authentication revoked")
}
