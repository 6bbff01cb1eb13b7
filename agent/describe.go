package agent

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"slices"

	"github.com/batchyard/batchyard/device/access"
)

// NewBook returns a book through which agents ask devices. They ask rarely, so connections are not kept for long.
func NewBook() *access.Book {
	return access.New(func(c *tls.Config) *http.Transport {
		t := Transport(Config{})
		t.TLSClientConfig = c
		return t
	})
}

// Of returns how an agent reports a described device, which it asks through the book. Server and intervals are the
// caller's.
func Of(d *access.Device, book *access.Book) Config {
	key := "key_env or key_file"
	switch {
	case d.KeyEnv != "":
		key = "$" + d.KeyEnv
	case d.KeyFile != "":
		key = d.KeyFile
	}
	name := d.Name
	return Config{
		ID: name, URL: d.Base(), Models: d.Models, Aliases: d.Aliases, Tags: d.Tags, Slots: d.Slots, Weight: d.Weight, Engine: d.Engine,
		AnyModel: true, KeySetting: key, OwnCA: d.CAFile != "",
		Do: func(req *http.Request) (*http.Response, error) { return book.Send(name, req) },
	}
}

// IsRemote reports whether a device is on another machine than this one, as far as its URL says.
func IsRemote(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil || u.Hostname() == "localhost" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	if ip == nil {
		return true
	}
	if ip.IsLoopback() {
		return false
	}
	own, err := net.InterfaceAddrs()
	return err != nil || !slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}
