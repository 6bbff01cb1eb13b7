package device

import (
	"cmp"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// Limits of a heartbeat.
const (
	MaxIDLength = 128
	MaxModels   = 256
	MaxTags     = 64
	MaxLoaded   = 64
	MaxSlots    = 4096
	MaxProblem  = 1024 // characters
)

// Device is one OpenAI-compatible server, as described by its last heartbeat.
type Device struct {
	ID     string   `json:"device_id"`
	URL    string   `json:"url"`
	Models []string `json:"models"`
	// Aliases are names under which tasks ask for models, and the device's own names of these.
	Aliases   map[string]string `json:"aliases,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	Slots     int               `json:"slots"`
	CPU       float64           `json:"cpu"`        // busy share of the host, 0 to 1
	Mem       float64           `json:"mem"`        // used share, 0 to 1
	IO        float64           `json:"io"`         // busy share of the busiest disk, 0 to 1
	LatencyMS float64           `json:"latency_ms"` // of a health check
	Queue     int               `json:"queue"`      // waiting inside the device; -1 unknown
	InFlight  int               `json:"in_flight"`  // worked on by the device; -1 unknown
	// Loaded are the models in the device's memory; empty: none, or not known.
	Loaded []string `json:"loaded,omitempty"`
	// Context is how many tokens the device takes at once, by its own names of models; * stands for all others.
	Context map[string]int `json:"context,omitempty"`
	// Problem is why the device does not answer its agent; empty: it does.
	Problem  string    `json:"problem,omitempty"`
	Draining bool      `json:"draining,omitempty"`
	Weight   float64   `json:"weight"` // for weighted policies; 1 unless said otherwise
	At       time.Time `json:"at,omitzero"`
	JoinedAt time.Time `json:"joined_at,omitzero"`

	// ChangedAt is since when the device is described as it is now, its figures aside.
	ChangedAt time.Time `json:"-"`

	// Drained means that an operator drained the device, rather than the device itself.
	// Draining is then true as well.
	Drained   bool      `json:"-"`
	DrainedAt time.Time `json:"-"`

	// Age is how old the heartbeat was when it was read, by Redis' clock.
	Age time.Duration `json:"-"`

	// Silent means that the device had missed its heartbeats when it was read.
	Silent bool `json:"-"`

	// Unserved means that no batcher read its assignments, or no worker its batches.
	Unserved bool `json:"-"`
}

// HasTags reports whether the device has all of the tags.
func (d *Device) HasTags(needs []string) bool {
	for _, n := range needs {
		if !slices.Contains(d.Tags, n) {
			return false
		}
	}
	return true
}

// Normalize fills in what a heartbeat may omit.
func (d *Device) Normalize() {
	d.Slots = cmp.Or(d.Slots, 1)
	d.Weight = cmp.Or(d.Weight, 1.0)
	d.URL = strings.TrimRight(d.URL, "/")
}

// Validate returns the first problem of a normalized device, as a *task.FieldError, or
// nil.
func (d *Device) Validate() error {
	if err := ValidateID(d.ID); err != nil {
		return err
	}
	if err := checkURL(d.URL); err != nil {
		return err
	}
	if err := checkAliases(d.Aliases); err != nil {
		return err
	}
	if utf8.RuneCountInString(d.Problem) > MaxProblem || !utf8.ValidString(d.Problem) || strings.ContainsFunc(d.Problem, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return &task.FieldError{Field: "problem", Problem: "it is not one line of text", Remedy: fmt.Sprintf("send at most %d characters", MaxProblem)}
	}
	if len(d.Models) == 0 && d.Problem == "" { // the models of one that never answered are not known
		return &task.FieldError{Field: "models", Problem: "it is missing", Remedy: `list the models that the device serves, or ["*"] for all`}
	}
	if err := checkNames("models", d.Models, MaxModels); err != nil {
		return err
	}
	if err := checkNames("loaded", d.Loaded, MaxLoaded); err != nil {
		return err
	}
	if err := checkContext(d.Context); err != nil {
		return err
	}
	if err := checkNames("tags", d.Tags, MaxTags); err != nil {
		return err
	}
	if d.Slots < 1 || d.Slots > MaxSlots {
		return &task.FieldError{Field: "slots", Problem: fmt.Sprintf("%d is out of range", d.Slots), Remedy: fmt.Sprintf("send 1 to %d", MaxSlots)}
	}
	for _, f := range []struct {
		name       string
		value, max float64
		remedy     string
	}{
		{"cpu", d.CPU, 1, "send the busy fraction, such as 0.35 for 35 %"},
		{"mem", d.Mem, 1, "send the used fraction, such as 0.35 for 35 %"},
		{"io", d.IO, 1, "send the busy fraction, such as 0.35 for 35 %"},
		{"latency_ms", d.LatencyMS, 1e7, "send milliseconds"},
		{"weight", d.Weight, 1e6, "send a number above 0"},
	} {
		if math.IsNaN(f.value) || f.value < 0 || f.value > f.max {
			return &task.FieldError{Field: f.name, Problem: fmt.Sprintf("%g is out of range 0 to %g", f.value, f.max), Remedy: f.remedy}
		}
	}
	for name, v := range map[string]int{"queue": d.Queue, "in_flight": d.InFlight} {
		if v < -1 || v > math.MaxInt32 {
			return &task.FieldError{Field: name, Problem: fmt.Sprintf("%d is out of range", v), Remedy: "send a count, or omit the field if it is unknown"}
		}
	}
	return nil
}

// ValidateID checks a device's id. Ids end up in URLs, Redis keys and record keys, so only
// plain characters are allowed. The error is a *task.FieldError.
func ValidateID(id string) error {
	const remedy = "use letters, digits and . _ - : @, at most 128"
	if id == "" {
		return &task.FieldError{Field: "device_id", Problem: "it is missing", Remedy: remedy}
	}
	if len(id) > MaxIDLength {
		return &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("it has %d bytes, the limit is %d", len(id), MaxIDLength), Remedy: remedy}
	}
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:@"
	if rest := strings.Trim(id, plain); rest != "" {
		return &task.FieldError{Field: "device_id", Problem: fmt.Sprintf("it contains %q", clipRune(rest)), Remedy: remedy}
	}
	return nil
}

// clipRune returns the first character: enough to quote from untrusted text.
func clipRune(s string) string {
	r, _ := utf8.DecodeRuneInString(s)
	return string(r)
}

func checkURL(raw string) error {
	const remedy = "write the base of the device's API, such as http://10.0.0.5:8000"
	if raw == "" {
		return &task.FieldError{Field: "url", Problem: "it is missing", Remedy: remedy}
	}
	u, err := url.Parse(raw)
	switch {
	case len(raw) > task.MaxURLLength:
		return &task.FieldError{Field: "url", Problem: fmt.Sprintf("it is longer than %d characters", task.MaxURLLength), Remedy: remedy}
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || !utf8.ValidString(raw):
		return &task.FieldError{Field: "url", Problem: "it is not an absolute http or https URL", Remedy: remedy}
	case u.User != nil:
		return &task.FieldError{Field: "url", Problem: "it contains credentials", Remedy: "remove them; credentials for devices belong in the workers' configuration"}
	case u.RawQuery != "" || u.Fragment != "":
		return &task.FieldError{Field: "url", Problem: "it has a query or a fragment", Remedy: remedy}
	}
	return nil
}

func checkNames(field string, names []string, most int) error {
	if len(names) > most {
		return &task.FieldError{Field: field, Problem: fmt.Sprintf("it has %d entries, the limit is %d", len(names), most), Remedy: "send fewer"}
	}
	for i, n := range names {
		bad := ""
		switch {
		case n == "":
			bad = "it is empty"
		case !utf8.ValidString(n):
			bad = "it is not valid UTF-8"
		case utf8.RuneCountInString(n) > task.MaxNameLength:
			bad = fmt.Sprintf("it is longer than %d characters", task.MaxNameLength)
		case strings.ContainsFunc(n, func(r rune) bool { return r < 0x20 || r == 0x7f }):
			bad = "it contains a control character"
		}
		if bad != "" {
			return &task.FieldError{Field: fmt.Sprintf("%s[%d]", field, i), Problem: bad, Remedy: "send a name"}
		}
	}
	return nil
}
