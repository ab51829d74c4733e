package queue

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/flowrun/flowrun/stages/volume"
)

// authority is a certificate authority of a test.
type authority struct {
	testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) check(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

// newAuthority makes one whose certificate is in ca.pem of its folder.
func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{TB: t, dir: t.TempDir()}
	a.cert, a.key = a.make(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, "ca")
	return a
}

// issue makes a certificate for a server at an address, or for a client, and gives the files of it and its key.
func (a *authority) issue(name, address string, until time.Time) (cert, key string) {
	a.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(address); ip != nil {
		c.IPAddresses = []net.IP{ip}
	}
	a.make(c, name)
	return filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem")
}

// make signs a certificate, the authority's own by itself, and writes it with its key.
func (a *authority) make(c *x509.Certificate, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	a.check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	a.check(err)
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "PRIVATE KEY", Bytes: secret}} {
		a.check(os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(block), 0o600))
	}
	made, err := x509.ParseCertificate(der)
	a.check(err)
	return made, key
}

func (a *authority) ca() string { return filepath.Join(a.dir, "ca.pem") }

// refused checks that no connection comes about, soon, for a reason that the words name and that says what to look at.
func (b *bench) refused(as error, what, words string, change func(*Config)) {
	b.Helper()
	begun := time.Now()
	q, err := Open(b.ctx, b.config(change), Worker)
	if err == nil {
		q.Close()
	}
	if !errors.Is(err, as) || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
		b.Errorf("%s: %v (want %q in one line)", what, err, words)
	}
	if time.Since(begun) > 8*time.Second { // a server that isn't there is waited for longer
		b.Errorf("%s: was tried again", what)
	}
}

// Certificates are checked both ways, and what is wrong with them is said at once.
func TestTLS(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t), newAuthority(t)
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	serve := func(cert, key string) *bench {
		conf := filepath.Join(t.TempDir(), "nats.conf")
		ours.check(os.WriteFile(conf, fmt.Appendf(nil, "tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", cert, key, ours.ca()), 0o600))
		return newBench(t, func(o *Options) { o.Server.Config = conf })
	}
	cert, key := ours.issue("client", "", later)
	mine := func(o *Config) { o.TLS = TLS{CA: ours.ca(), Cert: cert, Key: key} }

	b := serve(ours.issue("server", "127.0.0.1", later))
	b.trainer(b.open(Trainer, mine), 8)
	path := filepath.Join(b.dir, "context.json")
	b.check(os.WriteFile(path, fmt.Appendf(nil, `{"url": %q, "ca": %q, "cert": %q, "key": %q}`, strings.Replace(b.server.Address(), "nats:", "tls:", 1), ours.ca(), cert, key), 0o600))
	q := b.open(Worker, func(c *Config) { c.URL, c.Context = "", path })
	if state, err := q.nc.TLSConnectionState(); err != nil || len(state.PeerCertificates) != 1 {
		t.Errorf("%+v, %v", state, err)
	}
	b.send(q, ref("a", 0, 1, 1), 1, 0)

	b.refused(ErrTLS, "no authority", "certificate", func(c *Config) { c.TLS = TLS{Cert: cert, Key: key} })
	b.refused(ErrTLS, "another authority", "certificate", func(c *Config) { mine(c); c.TLS.CA = others.ca() })
	b.refused(ErrTLS, "no client certificate", "certificate", func(c *Config) { c.TLS = TLS{CA: ours.ca()} })
	foreign, foreignKey := others.issue("client", "", later)
	b.refused(ErrTLS, "a client certificate of another authority", "certificate", func(c *Config) { c.TLS = TLS{CA: ours.ca(), Cert: foreign, Key: foreignKey} })
	old, oldKey := ours.issue("old", "", past)
	b.refused(ErrTLS, "an expired client certificate", "certificate", func(c *Config) { c.TLS = TLS{CA: ours.ca(), Cert: old, Key: oldKey} })

	b = serve(ours.issue("late", "127.0.0.1", past))
	b.refused(ErrTLS, "an expired server", "expired", mine)
	b = serve(ours.issue("elsewhere", "127.0.0.2", later))
	b.refused(ErrTLS, "a server of another name", "127.0.0.2", mine)
	junk := filepath.Join(b.dir, "junk.pem")
	b.check(os.WriteFile(junk, []byte("junk"), 0o600))
	if _, err := Open(b.ctx, b.config(func(c *Config) { mine(c); c.TLS.CA = junk }), Worker); err == nil || !strings.Contains(err.Error(), "junk.pem") {
		t.Errorf("%v", err)
	}
	b = newBench(t)
	b.refused(ErrTLS, "a server without TLS", "secure connection", mine)
}

// A client's certificate that was replaced in its file is taken at the next connect.
func TestCertificatesAreReadAgain(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t)
	later := time.Now().Add(time.Hour)
	cert, key := ours.issue("server", "127.0.0.1", later)
	conf := filepath.Join(t.TempDir(), "nats.conf")
	user := func(name string) {
		ours.check(os.WriteFile(conf, fmt.Appendf(nil, "tls { cert_file: %q, key_file: %q, ca_file: %q, verify_and_map: true }\nauthorization { users = [ { user: \"CN=%s\" } ] }", cert, key, ours.ca(), name), 0o600))
	}
	user("first")
	b := newBench(t, func(o *Options) { o.Server.Config = conf })
	mine, mineKey := ours.issue("first", "", later)
	tq := b.open(Trainer, func(c *Config) { c.TLS = TLS{CA: ours.ca(), Cert: mine, Key: mineKey} })
	in := b.trainer(tq, 8)

	user("second")
	next, nextKey := ours.issue("second", "", later)
	b.check(os.Rename(next, mine))
	b.check(os.Rename(nextKey, mineKey))
	b.restart()
	b.send(tq, ref("a", 0, 1, 1), 1, 0)
	if _, ok := b.next(in, 10*time.Second); !ok {
		t.Fatalf("no patch; said:\n%s", b.words())
	}
}

// operator is one of a test, with an account that may use JetStream.
type operator struct {
	testing.TB
	account nkeys.KeyPair
	conf    string
}

func (o *operator) pair(p nkeys.KeyPair, err error) (nkeys.KeyPair, string) {
	o.Helper()
	if err != nil {
		o.Fatal(err)
	}
	public, err := p.PublicKey()
	if err != nil {
		o.Fatal(err)
	}
	return p, public
}

func newOperator(t testing.TB) *operator {
	t.Helper()
	o := &operator{TB: t, conf: filepath.Join(t.TempDir(), "nats.conf")}
	top, topID := o.pair(nkeys.CreateOperator())
	system, systemID := o.pair(nkeys.CreateAccount())
	_ = system // nobody logs in there
	var id string
	o.account, id = o.pair(nkeys.CreateAccount())
	oc := jwt.NewOperatorClaims(topID)
	oc.SystemAccount = systemID
	ac := jwt.NewAccountClaims(id)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	text := map[string]string{}
	for name, c := range map[string]jwt.Claims{"operator": oc, "account": ac, "system": jwt.NewAccountClaims(systemID)} {
		signed, err := c.Encode(top)
		if err != nil {
			t.Fatal(err)
		}
		text[name] = signed
	}
	conf := fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n", text["operator"], systemID, id, text["account"], systemID, text["system"])
	if err := os.WriteFile(o.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// creds writes a credentials file of a new user, good for so long, and gives its secrets.
func (o *operator) creds(path string, lasts time.Duration) (secrets []string) {
	o.Helper()
	user, id := o.pair(nkeys.CreateUser())
	c := jwt.NewUserClaims(id)
	c.Expires = time.Now().Add(lasts).Unix()
	signed, err := c.Encode(o.account)
	if err != nil {
		o.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		o.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(signed, seed)
	if err != nil {
		o.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		o.Fatal(err)
	}
	return []string{signed, string(seed)}
}

// Credentials files of an account are good until they expire; a file that was replaced by then carries the run on, one that
// wasn't ends it.
func TestCredentialsAreRotated(t *testing.T) {
	t.Parallel()
	op := newOperator(t)
	b := newBench(t, func(o *Options) { o.Server.Config = op.conf })
	file := filepath.Join(b.dir, "trainer.creds")
	with := func(path string) func(*Config) { return func(c *Config) { c.Creds = path } }
	secrets := op.creds(file, 2*time.Second)
	tq := b.open(Trainer, with(file))
	in := b.trainer(tq, 8)
	first := tq.link()
	secrets = append(secrets, op.creds(file, 4*time.Second)...)
	select {
	case <-first.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the server keeps whose credentials have expired")
	}
	b.send(tq, ref("a", 0, 1, 1), 2, 0)
	tag, ok := b.next(in, 10*time.Second)
	if !ok {
		t.Fatalf("no patch with new credentials; said:\n%s", b.words())
	}
	b.check(in.Durable(b.ctx, []volume.Tag{tag}))

	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	_, err := in.Next(ctx) // until they expire, too
	if !errors.Is(err, ErrRefused) {
		t.Errorf("%v; said:\n%s", err, b.words())
	}
	said := b.words() + fmt.Sprint(err)

	stranger, torn := filepath.Join(b.dir, "stranger.creds"), filepath.Join(b.dir, "torn.creds")
	secrets = append(secrets, newOperator(t).creds(stranger, time.Hour)...)
	b.refused(ErrRefused, "an account that the server doesn't know", "role worker", with(stranger))
	secrets = append(secrets, op.creds(file, -time.Minute)...)
	b.refused(ErrRefused, "expired credentials", "role worker", with(file))
	text, err := os.ReadFile(stranger)
	b.check(err)
	b.check(os.WriteFile(torn, text[:len(text)*2/3], 0o600))
	_, err = Open(b.ctx, b.config(with(torn)), Worker)
	if err == nil || !strings.Contains(err.Error(), "torn.creds: doesn't hold") {
		t.Errorf("%v", err)
	}
	said += fmt.Sprint(err)
	for _, s := range secrets {
		if strings.Contains(said, s) || strings.Contains(said, s[:24]) {
			t.Errorf("a secret is told: %s", said)
		}
	}
}
