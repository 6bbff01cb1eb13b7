package agent

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Config is which device to report, to which server and how often.
type Config struct {
	ID        string            `yaml:"id" doc:"Id of the device, unique in the fleet, at most 128 bytes."`
	URL       string            `yaml:"url" doc:"Base URL of the OpenAI-compatible server as seen by the agent, without /v1."`
	Advertise string            `yaml:"advertise" default:"" doc:"Base URL of the server as seen by the workers. Empty: the same as url."`
	Models    []string          `yaml:"models" doc:"Models that the device serves. Empty: those listed by its GET /v1/models."`
	Aliases   map[string]string `yaml:"-"` // names in tasks, and the device's own names of these models
	Engine    string            `yaml:"-"` // kind of server, as in package access; empty: found out
	Weight    float64           `yaml:"-"` // share of the load, for weighted policies; 0: 1
	AnyModel  bool              `yaml:"-"` // a device that does not list its models serves any
	Stay      bool              `yaml:"-"` // the device does not leave when the agent ends: another one may report it, too
	OwnCA     bool              `yaml:"-"` // certificates are checked against those of a ca_file, for messages
	Remote    bool              `yaml:"-"` // the device is on another machine, whose load is not known
	// Do sends the requests to the device, with what it wants in each of them; nil: nothing is added.
	Do           func(*http.Request) (*http.Response, error) `yaml:"-"`
	KeySetting   string                                      `yaml:"-"` // where the device's key is set, for messages
	Tags         []string                                    `yaml:"tags" doc:"Capability tags that tasks may require."`
	Slots        int                                         `yaml:"slots" default:"1" unit:"requests" min:"1" max:"100000" doc:"Number of requests that the device can process concurrently."`
	Interval     time.Duration                               `yaml:"interval" default:"5s" min:"1s" max:"1m" doc:"Time between two heartbeats."`
	Timeout      time.Duration                               `yaml:"timeout" default:"3s" min:"100ms" max:"30s" doc:"Timeout of one request to the device or to the Batchyard server."`
	MaxBackoff   time.Duration                               `yaml:"max_backoff" default:"30s" min:"1s" max:"10m" doc:"Longest pause between two attempts while the Batchyard server is unreachable."`
	Server       string                                      `yaml:"server" default:"http://127.0.0.1:8080" doc:"Base URL of Batchyard's HTTP API."`
	ServerKey    string                                      `yaml:"-"` // bearer token for the server; empty: that of ServerKeyEnv. Never from a file
	ServerKeyEnv string                                      `yaml:"server_key_env" default:"BATCHYARD_SERVER_KEY" doc:"Environment variable that holds the bearer token for the Batchyard server, if it requires one."`
}

const (
	defaultInterval = 5 * time.Second
	defaultTimeout  = 3 * time.Second

	maxNameBytes = 256  // of a model or tag
	maxIDBytes   = 128  // of the device's id
	maxModels    = 1000 // of one device
)

// check applies defaults, so that a Config made in Go may omit fields, and reports what
// cannot work.
func (c Config) check() (Config, error) {
	if c.ID == "" || len(c.ID) > maxIDBytes || strings.ContainsFunc(c.ID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return c, fmt.Errorf("agent: invalid device id %[2]q: use 1 to %[1]d printable bytes", maxIDBytes, c.ID)
	}
	var err error
	if c.URL, err = base("device's url", "url", c.URL); err != nil {
		return c, err
	}
	if c.Advertise == "" {
		c.Advertise = c.URL
	} else if c.Advertise, err = base("advertised url", "--advertise", c.Advertise); err != nil {
		return c, err
	}
	if c.Server, err = base("server's url", "--server", c.Server); err != nil {
		return c, err
	}
	for _, name := range slices.Concat(c.Models, c.Tags) {
		if name == "" || len(name) > maxNameBytes {
			return c, fmt.Errorf("agent: invalid model or tag %[2]q: use 1 to %[1]d bytes", maxNameBytes, name)
		}
	}
	if len(c.Models) > maxModels || len(c.Tags) > maxModels {
		return c, fmt.Errorf("agent: too many models or tags: report at most %d models and %d tags", maxModels, maxModels)
	}
	if c.Slots < 0 || c.Interval < 0 || c.Timeout < 0 || c.MaxBackoff < 0 {
		return c, fmt.Errorf("agent: slots, interval, timeout and max_backoff must not be negative")
	}
	if c.Slots == 0 {
		c.Slots = 1
	}
	c.Interval, c.Timeout = cmp.Or(c.Interval, defaultInterval), cmp.Or(c.Timeout, defaultTimeout)
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 30 * time.Second
	}
	c.MaxBackoff = max(c.MaxBackoff, c.Interval)
	if c.ServerKey == "" && c.ServerKeyEnv != "" {
		c.ServerKey = os.Getenv(c.ServerKeyEnv)
	}
	c.KeySetting = cmp.Or(c.KeySetting, "key_env or key_file")
	return c, nil
}

// base checks a base URL. People paste the URL that OpenAI clients use, which ends with
// /v1, so that suffix is accepted and removed.
func base(what, flag, raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("agent: invalid %s %q: use a URL like http://host:port; set %s", what, redact(u, raw), flag)
	}
	trimmed := strings.TrimRight(u.String(), "/")
	return strings.TrimRight(strings.TrimSuffix(trimmed, "/v1"), "/"), nil
}

// redact keeps a password in a URL out of error messages.
func redact(u *url.URL, raw string) string {
	if u == nil {
		if strings.Contains(raw, "@") {
			return "(not a URL)"
		}
		return raw
	}
	return u.Redacted()
}
