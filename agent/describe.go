package agent

import (
	"crypto/tls"
	"net/http"

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
		AnyModel: true, KeySetting: key,
		Do: func(req *http.Request) (*http.Response, error) { return book.Send(name, req) },
	}
}
