package access

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Book knows how to reach every device. A device that it has no entry for is reached as the entry [Others] says, or
// without that as its heartbeat says, with nothing added. It may be used from any goroutine.
type Book struct {
	plain   *lines
	make    func(*tls.Config) *http.Transport
	entries atomic.Pointer[map[string]*entry]
	mu      sync.Mutex // of Load
}

// entry is one device of the book.
type entry struct {
	Device
	lines *lines
	own   bool // it does not share its lines with other devices
	key   *key
}

// lines are the connections to a device, or to many.
type lines struct {
	kept  *http.Transport
	fresh *http.Transport // which keeps no connections
}

func newLines(newTransport func(*tls.Config) *http.Transport, c *tls.Config) *lines {
	l := &lines{kept: newTransport(c), fresh: newTransport(c)}
	l.fresh.DisableKeepAlives = true
	return l
}

// New returns a book without entries. newTransport makes the transports of requests: one for all devices without
// TLS settings of their own, and one for each of the others. The configuration of the first is nil.
func New(newTransport func(*tls.Config) *http.Transport) *Book {
	b := &Book{plain: newLines(newTransport, nil), make: newTransport}
	b.entries.Store(&map[string]*entry{})
	return b
}

// Check returns what is wrong with devices of the configuration, one error for each.
func Check(devices []Device) error {
	_, err := New(func(c *tls.Config) *http.Transport { return &http.Transport{TLSClientConfig: c} }).read(devices)
	return err
}

// Load replaces all entries. If any device is wrong, it changes nothing; the error has a line for each. Requests that
// are underway end as they began.
func (b *Book) Load(devices []Device) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := b.read(devices)
	if err != nil {
		return err
	}
	before := *b.entries.Swap(&next)
	for _, e := range before {
		if e.own {
			e.lines.kept.CloseIdleConnections()
		}
	}
	return nil
}

func (b *Book) read(devices []Device) (map[string]*entry, error) {
	next := make(map[string]*entry, len(devices))
	var errs []error
	for i, d := range devices {
		d = d.WithDefaults()
		e, err := b.newEntry(d)
		var fe *task.FieldError
		switch {
		case errors.As(err, &fe):
			field := fe.Field
			if field == "device_id" {
				field = "name"
			}
			errs = append(errs, fmt.Errorf("devices[%d].%s: %s: %s", i, field, fe.Problem, fe.Remedy))
		case err != nil:
			errs = append(errs, fmt.Errorf("devices[%d]: %w", i, err))
		case next[d.Name] != nil:
			errs = append(errs, fmt.Errorf("devices[%d].name: there are two devices %q: give each its own name", i, d.Name))
		default:
			next[d.Name] = e
		}
	}
	return next, errors.Join(errs...)
}

func (b *Book) newEntry(d Device) (*entry, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	e := &entry{Device: d, lines: b.plain, key: newKey(&d)}
	if _, err := e.key.value(); err != nil {
		return nil, err
	}
	config, err := tlsOf(&d)
	if err != nil {
		return nil, err
	}
	if config != nil {
		e.lines, e.own = newLines(b.make, config), true
	}
	return e, nil
}

// Of returns what the book says of a device; ok is false if that is nothing.
func (b *Book) Of(name string) (d Device, ok bool) {
	if e := b.entry(name); e != nil {
		return e.Device, true
	}
	return Device{}, false
}

// entry returns the entry that applies to a device; nil if none does.
func (b *Book) entry(name string) *entry {
	entries := *b.entries.Load()
	if e := entries[name]; e != nil {
		return e
	}
	return entries[Others]
}

// Send sends a request to a device, with what the device wants in every request.
func (b *Book) Send(name string, req *http.Request) (*http.Response, error) {
	l, err := b.prepare(name, req)
	if err != nil {
		return nil, err
	}
	return do(l.kept, req)
}

// SendFresh sends a request to a device over a new connection.
func (b *Book) SendFresh(name string, req *http.Request) (*http.Response, error) {
	l, err := b.prepare(name, req)
	if err != nil {
		return nil, err
	}
	return do(l.fresh, req)
}

// prepare adds what the device wants to a request, and returns the lines to it.
func (b *Book) prepare(name string, req *http.Request) (*lines, error) {
	e := b.entry(name)
	if e == nil {
		return b.plain, nil
	}
	key, err := e.key.value()
	if err != nil {
		return nil, err
	}
	e.decorate(req.Header, key)
	return e.lines, nil
}

// do follows no redirect: it could send a prompt, or a key, to a host that was not configured.
func do(t http.RoundTripper, req *http.Request) (*http.Response, error) {
	c := http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c.Do(req) //nolint:gosec // the operator, or the device, says where it is
}

// CloseIdle closes the connections that are not in use.
func (b *Book) CloseIdle() {
	b.plain.kept.CloseIdleConnections()
	for _, e := range *b.entries.Load() {
		if e.own {
			e.lines.kept.CloseIdleConnections()
		}
	}
}

// maxFile bounds the files that are read, in bytes.
const maxFile = 1 << 20

func readFile(path, what string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("reading the %s: %w", what, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the %s: %w", what, err)
	}
	return b, nil
}

// tlsOf returns the TLS settings of a device; nil for the usual ones.
func tlsOf(d *Device) (*tls.Config, error) {
	if d.CAFile == "" && d.CertFile == "" && d.ServerName == "" {
		return nil, nil
	}
	c := &tls.Config{ServerName: d.ServerName, MinVersion: tls.VersionTLS12}
	if d.CAFile != "" {
		pem, err := readFile(d.CAFile, "ca_file of device "+d.Name)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the ca_file of device %s: %s holds no certificate in PEM", d.Name, d.CAFile)
		}
	}
	if d.CertFile != "" {
		cert, err := readFile(d.CertFile, "cert_file of device "+d.Name)
		if err != nil {
			return nil, err
		}
		key, err := readFile(d.CertKey, "cert_key_file of device "+d.Name)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("reading the cert_file of device %s: %w", d.Name, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// key is the API key of a device. A file is read again at most every keyAge, so that a key can be replaced while
// the program runs.
type key struct {
	fixed, path, device string

	mu    sync.Mutex
	last  string
	again time.Time // when to read the file again
}

const keyAge = 10 * time.Second

func newKey(d *Device) *key {
	k := &key{path: d.KeyFile, device: d.Name}
	if d.KeyEnv != "" {
		k.fixed = os.Getenv(d.KeyEnv)
	}
	return k
}

// value returns the key. If the file can't be read any more, the last key is used.
func (k *key) value() (string, error) {
	if k.path == "" {
		return k.fixed, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != "" && time.Now().Before(k.again) {
		return k.last, nil
	}
	b, err := readFile(k.path, "key_file of device "+k.device)
	text := string(bytes.TrimSpace(b))
	switch {
	case err != nil && k.last == "":
		return "", err
	case err == nil && text == "":
		return "", fmt.Errorf("reading the key_file of device %s: %s is empty", k.device, k.path)
	case err == nil:
		k.last = text
	}
	k.again = time.Now().Add(keyAge)
	return k.last, nil
}
