package access_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/access"
)

func newBook(t *testing.T, devices ...access.Device) *access.Book {
	t.Helper()
	b := access.New(func(c *tls.Config) *http.Transport { return &http.Transport{TLSClientConfig: c} })
	t.Cleanup(b.CloseIdle)
	require.NoError(t, b.Load(devices))
	return b
}

// ask sends a request to a device and returns the status, or the error.
func ask(t *testing.T, b *access.Book, name, url string) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := b.Send(name, req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode, nil
}

// pki is a certificate authority in files.
type pki struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t *testing.T) *pki {
	p := &pki{t: t, dir: t.TempDir()}
	p.cert, p.key = p.issue("ca", nil, nil)
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// issue writes a certificate and its key to files.
func (p *pki) issue(name string, names []string, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(p.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	by, signer := parent, p.key
	if parent == nil {
		by, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, signer)
	require.NoError(p.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(p.t, err)
	raw, err := x509.MarshalECPrivateKey(key)
	require.NoError(p.t, err)
	write := func(file, kind string, b []byte) {
		require.NoError(p.t, os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600))
	}
	write(name+".pem", "CERTIFICATE", der)
	write(name+".key", "EC PRIVATE KEY", raw)
	return cert, key
}

func TestDevicesAreReachedAsTheyAreDescribed(t *testing.T) {
	p := newPKI(t)
	p.issue("server", []string{"gpu.lab"}, p.cert)
	p.issue("client", nil, p.cert)
	pair, err := tls.LoadX509KeyPair(p.path("server.pem"), p.path("server.key"))
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	seen := make(chan http.Header, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients fail on purpose
	s.StartTLS()
	defer s.Close()

	t.Setenv("TEST_ACCESS_KEY", "k1")
	d := access.Device{
		Name: "gpu", URL: s.URL, KeyEnv: "TEST_ACCESS_KEY", Headers: map[string]string{"X-Team": "a b"},
		CAFile: p.path("ca.pem"), CertFile: p.path("client.pem"), CertKey: p.path("client.key"), ServerName: "gpu.lab",
	}
	b := newBook(t, d)
	status, err := ask(t, b, "gpu", s.URL)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	h := <-seen
	require.Equal(t, []string{"Bearer k1", "a b"}, []string{h.Get("Authorization"), h.Get("X-Team")})

	status, err = ask(t, b, "gpu", s.URL+"/moved")
	require.NoError(t, err)
	require.Equal(t, http.StatusFound, status, "a redirect is not followed")
	<-seen

	_, err = ask(t, b, "unknown", s.URL)
	require.ErrorContains(t, err, "certificate", "nothing is added for devices that are not described")
	without := d
	without.CertFile, without.CertKey = "", ""
	_, err = ask(t, newBook(t, without), "gpu", s.URL)
	require.Error(t, err)
	other := d
	other.ServerName = ""
	_, err = ask(t, newBook(t, other), "gpu", s.URL)
	require.ErrorContains(t, err, "certificate")

	others := d
	others.Name, others.URL, others.KeyEnv = access.Others, "", ""
	require.NoError(t, b.Load([]access.Device{d, others}))
	for name, key := range map[string]string{"gpu": "Bearer k1", "unknown": ""} {
		_, err = ask(t, b, name, s.URL)
		require.NoError(t, err)
		require.Equal(t, key, (<-seen).Get("Authorization"), name)
	}

	require.NoError(t, b.Load(nil))
	_, err = ask(t, b, "gpu", s.URL)
	require.ErrorContains(t, err, "certificate", "it is gone from the book")
}

// A key in a file can be replaced while the program runs.
func TestKeyFilesAreReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte("first\n"), 0o600))
	synctest.Test(t, func(t *testing.T) {
		there, here := net.Pipe()
		b := access.New(func(*tls.Config) *http.Transport {
			return &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return here, nil }}
		})
		require.NoError(t, b.Load([]access.Device{{Name: "d", URL: "http://d", KeyFile: path}}))
		keys := make(chan string, 1)
		server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { keys <- r.Header.Get("Authorization") })} //nolint:gosec // in memory
		go func() { _ = server.Serve(&onePipe{conn: there, closed: make(chan struct{})}) }()
		expect := func(want string) {
			t.Helper()
			_, err := ask(t, b, "d", "http://d")
			require.NoError(t, err)
			require.Equal(t, want, <-keys)
		}
		expect("Bearer first")
		require.NoError(t, os.WriteFile(path, []byte("second"), 0o600))
		expect("Bearer first")
		time.Sleep(11 * time.Second) //nolint:forbidigo // virtual time
		expect("Bearer second")
		require.NoError(t, os.Remove(path))
		time.Sleep(11 * time.Second) //nolint:forbidigo // virtual time
		expect("Bearer second")
		b.CloseIdle()
		require.NoError(t, server.Close())
	})
}

// onePipe is a listener with one connection.
type onePipe struct {
	conn   net.Conn
	closed chan struct{}
}

func (p *onePipe) Accept() (net.Conn, error) {
	if c := p.conn; c != nil {
		p.conn = nil
		return c, nil
	}
	<-p.closed
	return nil, net.ErrClosed
}
func (p *onePipe) Close() error   { close(p.closed); return nil }
func (p *onePipe) Addr() net.Addr { return &net.TCPAddr{} }

func TestWrongDevices(t *testing.T) {
	t.Setenv("TEST_ACCESS_KEY", "k")
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	good := access.Device{Name: "d", URL: "https://d"}
	for text, change := range map[string]func(*access.Device){
		"devices[0].name: it is missing":            func(d *access.Device) { d.Name = "" },
		"devices[0].name: it contains \"/\"":        func(d *access.Device) { d.Name = "a/b" },
		"devices[0].url":                            func(d *access.Device) { d.URL = "d:8000" },
		"it contains credentials":                   func(d *access.Device) { d.URL = "https://u:p@d" },
		"it is not an https URL, but TLS is set up": func(d *access.Device) { d.URL, d.ServerName = "http://d", "x" },
		"devices[0].base_path":                      func(d *access.Device) { d.BasePath = "/a?b" },
		"devices[0].key_file: key_env is set, too":  func(d *access.Device) { d.KeyEnv, d.KeyFile = "TEST_ACCESS_KEY", empty },
		"the environment variable NOT_SET is empty": func(d *access.Device) { d.KeyEnv = "NOT_SET" },
		"is empty":                                    func(d *access.Device) { d.KeyFile = empty },
		"reading the ca_file of device d":             func(d *access.Device) { d.CAFile = empty },
		"reading the ca_file of device d: open":       func(d *access.Device) { d.CAFile = empty + ".missing" },
		"cert_file and cert_key_file belong together": func(d *access.Device) { d.CertFile = empty },
		"reading the cert_file of device d":           func(d *access.Device) { d.CertFile, d.CertKey = empty, empty },
		"devices[0].headers.A B":                      func(d *access.Device) { d.Headers = map[string]string{"A B": "c"} },
		"devices[0].headers.A":                        func(d *access.Device) { d.Headers = map[string]string{"A": "c\r\nX: y"} },
		"Batchyard sets this header itself":           func(d *access.Device) { d.Headers = map[string]string{"x-request-id": "c"} },
		"devices[0].slots":                            func(d *access.Device) { d.Slots = 5000 },
		"devices[0].models[0]":                        func(d *access.Device) { d.Models = []string{""} },
		"* stands for devices that report themselves": func(d *access.Device) { d.Name = "*" },
		"devices[0].aliases":                          func(d *access.Device) { d.Aliases = map[string]string{"a": ""} },
	} {
		d := good
		change(&d)
		require.ErrorContains(t, access.Check([]access.Device{d}), text)
	}
	require.ErrorContains(t, access.Check([]access.Device{good, good}), `devices[1].name: there are two devices "d"`)
	require.NoError(t, access.Check([]access.Device{good, {Name: "elsewhere"}}))

	b := newBook(t, good)
	require.Error(t, b.Load([]access.Device{{Name: "other", URL: "https://o"}, {}}))
	_, ok := b.Of("d")
	require.True(t, ok, "a list with a mistake changes nothing")
}

func TestBase(t *testing.T) {
	for in, want := range map[[2]string]string{
		{"http://d:1", ""}: "http://d:1", {"http://d:1/v1/", ""}: "http://d:1", {"http://d/openai/v1", ""}: "http://d/openai",
		{"http://d", "openai"}: "http://d/openai", {"http://d/v1", "/openai/"}: "http://d/openai", {"http://d", "/openai/v1"}: "http://d/openai", {"", "/x"}: "",
	} {
		d := access.Device{URL: in[0], BasePath: in[1]}
		require.Equal(t, want, d.Base(), "%v", in)
	}
}

func TestParse(t *testing.T) {
	t.Setenv("TEST_ACCESS_KEY", "k")
	d, err := access.Parse("gpu=https://10.0.0.5/v1,model=a,model=b:8b,alias=gpt-4o=b:8b,tag=gpu,slots=16,weight=2.5,key_env=TEST_ACCESS_KEY,header=X-A: b,server_name=gpu.lab,base_path=/openai,engine=vllm", 4)
	require.NoError(t, err)
	require.Equal(t, access.Device{
		Name: "gpu", URL: "https://10.0.0.5/v1", Models: []string{"a", "b:8b"}, Aliases: map[string]string{"gpt-4o": "b:8b"}, Tags: []string{"gpu"}, Slots: 16, Weight: 2.5,
		KeyEnv: "TEST_ACCESS_KEY", Headers: map[string]string{"X-A": "b"}, ServerName: "gpu.lab", BasePath: "/openai", Engine: "vllm",
	}, d)
	d, err = access.Parse("d=http://h", 4)
	require.NoError(t, err)
	require.Equal(t, 4, d.Slots)
	for word, text := range map[string]string{
		"d": "write NAME=URL", "=http://h": "write NAME=URL", "d=": "write NAME=URL", "d=h:8000": "url: it is not an absolute", "a b=http://h": "the name",
		"d=http://h,slots=x": "slots=x", "d=http://h,slots=0": "slots=0", "d=http://h,weight=-1": "weight=-1", "d=http://h,alias=a": "alias=NAME=OWN",
		"d=http://h,header=a": "header=NAME:VALUE", "d=http://h,key=x": "write key_env=VARIABLE or key_file=PATH", "d=http://h,colour=x": `unknown option "colour"`, "d=http://h,tag": "write option=value",
		"d=http://h,key_env=NOT_SET": "NOT_SET is empty", "d=http://h,engine=other": "engine",
	} {
		_, err := access.Parse(word, 4)
		require.ErrorContainsf(t, err, text, "%s", word)
		require.NotContains(t, strings.ToLower(err.Error()), "device_id")
	}
}
