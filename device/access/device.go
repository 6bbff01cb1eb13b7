package access

import (
	"cmp"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// Device is one device of the configuration.
type Device struct {
	Name       string            `yaml:"name" doc:"Id of the device, unique in the fleet. Without url, the entry applies to a device that reports itself under this id; * stands for all such devices without an entry."`
	URL        string            `yaml:"url" doc:"Base URL of the OpenAI-compatible server, with or without /v1. Empty: an agent elsewhere reports the device, and only the settings below apply."`
	BasePath   string            `yaml:"base_path" doc:"Path that comes before /v1, such as /openai. Often part of url."`
	Models     []string          `yaml:"models" doc:"Models that it serves, as it calls them. Empty: those that it lists."`
	Aliases    map[string]string `yaml:"aliases" doc:"Names under which tasks ask for models, and the device's own names of these."`
	Tags       []string          `yaml:"tags" doc:"Capability tags that tasks may need."`
	Slots      int               `yaml:"slots" default:"4" unit:"requests" min:"1" max:"4096" doc:"Number of requests that it works on at the same time."`
	Weight     float64           `yaml:"weight" default:"1" unit:"share" min:"0.001" max:"1000000" doc:"Share of the load, for weighted policies."`
	KeyEnv     string            `yaml:"key_env" doc:"Environment variable that holds its API key, which is sent as a bearer token."`
	KeyFile    string            `yaml:"key_file" doc:"File that holds its API key. It is read again when it changes."`
	Headers    map[string]string `yaml:"headers" doc:"More headers of every request."`
	CAFile     string            `yaml:"ca_file" doc:"PEM file with the certificates that may have signed the device's. Empty: those of the system."`
	CertFile   string            `yaml:"cert_file" doc:"PEM file with the client certificate, if the device wants one."`
	CertKey    string            `yaml:"cert_key_file" doc:"PEM file with the key of cert_file."`
	ServerName string            `yaml:"server_name" doc:"Name in the device's certificate, if it is not the host of url."`
	Engine     string            `yaml:"engine" default:"auto" enum:"auto,vllm,sglang,llamacpp,ollama,tgi,tei,openai" doc:"Kind of server, for the figures that it reports. auto: found out."`
}

// Others is the name of the entry for every device that reports itself and has no entry.
const Others = "*"

// engines are the kinds of servers, as in the tag of Device.Engine.
var engines = []string{"auto", "vllm", "sglang", "llamacpp", "ollama", "tgi", "tei", "openai"}

// DefaultSlots is how many requests a device works on at the same time if nothing says otherwise.
const DefaultSlots = 4

// WithDefaults returns the device with defaults for what is not set, so that one made in Go may omit them.
func (d Device) WithDefaults() Device {
	d.Slots = cmp.Or(d.Slots, DefaultSlots)
	d.Weight = cmp.Or(d.Weight, 1)
	d.Engine = cmp.Or(d.Engine, "auto")
	return d
}

// Base returns the base URL without /v1; empty if there is none. People paste the URL that OpenAI clients use,
// which ends with it.
func (d *Device) Base() string {
	if d.URL == "" {
		return ""
	}
	base := strings.TrimRight(d.URL, "/")
	if path := strings.Trim(d.BasePath, "/"); path != "" {
		base = strings.TrimRight(strings.TrimSuffix(base, "/v1"), "/") + "/" + path
	}
	return strings.TrimRight(strings.TrimSuffix(base, "/v1"), "/")
}

// Same reports whether two devices are described alike.
func (d *Device) Same(o *Device) bool { return reflect.DeepEqual(d, o) }

// Reported is the device as a heartbeat describes it.
func (d *Device) Reported(models []string) device.Device {
	out := device.Device{ID: d.Name, URL: d.Base(), Models: models, Aliases: d.Aliases, Tags: d.Tags, Slots: d.Slots, Weight: d.Weight, Queue: -1, InFlight: -1}
	out.Normalize()
	return out
}

// check returns the first problem, as a *task.FieldError, or nil.
func (d *Device) check() error {
	probe := d.Reported([]string{device.AnyModel})
	if d.Name == Others {
		if d.URL != "" || len(d.Models) > 0 || len(d.Aliases) > 0 {
			return &task.FieldError{Field: "name", Problem: "* stands for devices that report themselves, so it can't set url, models or aliases", Remedy: "write the name of the device"}
		}
		probe.ID = "others"
	}
	if len(d.Models) > 0 {
		probe.Models = d.Models
	}
	if d.URL == "" {
		probe.URL = "http://reported.elsewhere"
	} else if u, err := url.Parse(d.URL); err == nil && u.Scheme == "http" && (d.CAFile != "" || d.CertFile != "" || d.ServerName != "") {
		return &task.FieldError{Field: "url", Problem: "it is not an https URL, but TLS is set up", Remedy: "write https://, or remove ca_file, cert_file and server_name"}
	}
	if strings.ContainsAny(d.BasePath, "?# ") {
		return &task.FieldError{Field: "base_path", Problem: fmt.Sprintf("%q is not a path", d.BasePath), Remedy: "write a path such as /openai"}
	}
	if err := probe.Validate(); err != nil {
		return err
	}
	if !slices.Contains(engines, d.Engine) {
		return &task.FieldError{Field: "engine", Problem: fmt.Sprintf("%q is not known", d.Engine), Remedy: "write one of " + strings.Join(engines, ", ")}
	}
	if d.KeyEnv != "" && d.KeyFile != "" {
		return &task.FieldError{Field: "key_file", Problem: "key_env is set, too", Remedy: "set one of the two"}
	}
	if d.KeyEnv != "" && os.Getenv(d.KeyEnv) == "" {
		return &task.FieldError{Field: "key_env", Problem: fmt.Sprintf("the environment variable %s is empty", d.KeyEnv), Remedy: "set it to the API key of the device, or remove the setting"}
	}
	if (d.CertFile == "") != (d.CertKey == "") {
		return &task.FieldError{Field: "cert_key_file", Problem: "cert_file and cert_key_file belong together", Remedy: "set both, or none"}
	}
	return checkHeaders(d.Headers)
}

// isToken reports whether a name consists of the characters of RFC 9110's token.
func isToken(name string) bool {
	const allowed = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return name != "" && strings.Trim(name, allowed) == ""
}

// ours are the headers that a request has anyway.
var ours = []string{"Content-Type", "Content-Length", "Host", "User-Agent", "X-Request-Id", "Traceparent", "Connection", "Transfer-Encoding"}

func checkHeaders(headers map[string]string) error {
	for name, value := range headers {
		field := "headers." + name
		if !isToken(name) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return &task.FieldError{Field: field, Problem: "it is not an HTTP header", Remedy: "write a name and a value without control characters"}
		}
		for _, o := range ours {
			if textproto.CanonicalMIMEHeaderKey(name) == o {
				return &task.FieldError{Field: field, Problem: "Batchyard sets this header itself", Remedy: "remove it"}
			}
		}
	}
	return nil
}

// decorate adds what the device wants in every request.
func (d *Device) decorate(h http.Header, key string) {
	if key != "" {
		h.Set("Authorization", "Bearer "+key)
	}
	for name, value := range d.Headers {
		h.Set(name, value)
	}
}
