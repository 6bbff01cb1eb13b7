package task

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of a task's fields. The size of the input is limited by [Limits].
const (
	MaxIDLength      = 128  // characters of a task, job or tenant id
	MaxNameLength    = 256  // characters of a model, endpoint, tag, device or session
	MaxURLLength     = 2048 // characters of a callback URL
	MaxNeeds         = 32
	MaxLabels        = 16
	MaxAttemptsLimit = 20 // attempts a task may ask for
	MaxLevel         = 9  // levels within a priority go from 0 to 9, 9 first
	maxGeneration    = 1 << 20
	maxAttemptNumber = 1_000_000
	maxBackoff       = 7 * 24 * time.Hour
	maxMessage       = 4096 // bytes of an attempt's message
)

// Times of a task must be between these. JSON has no years beyond 9999: a time that was
// sent as a number in milliseconds instead of seconds would make a task whose result
// cannot be written.
var (
	earliestTime = time.Unix(0, 0)
	latestTime   = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

// DefaultTenant owns tasks without a tenant.
const DefaultTenant = "default"

// Priority is one of three priorities; each has its own topic.
type Priority string

// The priorities, highest first.
const (
	High   Priority = "high"
	Normal Priority = "normal"
	Low    Priority = "low"
)

// Priorities lists the priorities, highest first.
var Priorities = []Priority{High, Normal, Low}

// Endpoints of devices.
const (
	EndpointChat        = "/v1/chat/completions"
	EndpointCompletions = "/v1/completions"
	EndpointEmbeddings  = "/v1/embeddings"
	EndpointResponses   = "/v1/responses"
	EndpointModerations = "/v1/moderations"
	EndpointScore       = "/v1/score"  // of vLLM
	EndpointRerank      = "/v1/rerank" // of vLLM, llama.cpp and others
)

// Endpoints lists the endpoints that a task may use.
var Endpoints = []string{EndpointChat, EndpointCompletions, EndpointEmbeddings, EndpointResponses, EndpointModerations, EndpointScore, EndpointRerank}

// Task is one inference request. (Tenant, ID) is its identity: submitting it
// again is the same task, never a second one.
//
// The fields up to SubmittedAt are the user's; Progress is Batchyard's own.
// The order of the fields is the positional wire form: append only.
type Task struct {
	_msgpack struct{} `msgpack:",as_array"`

	ID          string            `json:"task_id,omitempty"`
	Tenant      string            `json:"tenant,omitempty"`
	Model       string            `json:"model"`
	Endpoint    string            `json:"endpoint,omitempty"`
	Input       Input             `json:"input"`
	Priority    Priority          `json:"priority,omitempty"`
	Level       int               `json:"level,omitempty"`       // 0–9 within the priority, 9 first
	Needs       []string          `json:"needs,omitempty"`       // capability tags that a device must have
	DependsOn   []string          `json:"depends_on,omitempty"`  // not supported yet: must be empty
	SessionID   string            `json:"session_id,omitempty"`  // for policies that keep a session on one device
	Deadline    time.Time         `json:"deadline,omitzero"`     // unfinished by then: EXPIRED
	NotBefore   time.Time         `json:"not_before,omitzero"`   // not assigned earlier
	MaxAttempts int               `json:"max_attempts,omitzero"` // 0: as configured
	Degrade     bool              `json:"degrade,omitempty"`     // a smaller model may answer when nothing else does
	Callback    *Callback         `json:"callback,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	JobID       string            `json:"job_id,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"` // the line's own id within its job
	TraceID     string            `json:"trace_id,omitempty"`  // 32 hex digits (W3C)
	SubmittedAt time.Time         `json:"submitted_at,omitzero"`
	Progress    *Progress         `json:"progress,omitempty"`
}

// Callback is where to POST the result.
type Callback struct {
	URL string `json:"url" msgpack:"url"`
}

// Progress is what Batchyard adds to a task that it writes back to its topic, because it
// was tried or parked. A new task has none.
type Progress struct {
	Requeues       int       `json:"requeues" msgpack:"requeues"`                                   // how often Batchyard itself has written the task again; part of the claim
	Attempts       []Attempt `json:"attempts,omitempty" msgpack:"attempts,omitempty"`               // what has been tried, oldest first
	Exclude        []string  `json:"exclude,omitempty" msgpack:"exclude,omitempty"`                 // devices that are not to be tried again
	BackoffMS      int64     `json:"backoff_ms,omitempty" msgpack:"backoff_ms,omitempty"`           // not assigned until this long after the task was written: a time would compare two clocks
	RequestedModel string    `json:"requested_model,omitempty" msgpack:"requested_model,omitempty"` // the model asked for, when degraded to another
	Generation     int       `json:"generation,omitempty" msgpack:"generation,omitempty"`           // 0 for the first run, n after the nth retry on request; part of the claim
	Moved          bool      `json:"moved,omitempty" msgpack:"moved,omitempty"`                     // it was taken from a device's queue to even out the load; not again before it ran
	Sent           []Header  `json:"sent,omitempty" msgpack:"sent,omitempty"`                       // what the sender's record had besides the task, for the record of the result

	// NotBefore is when the backoff ends, as the router that has read the task reckons.
	NotBefore time.Time `json:"-" msgpack:"-"`
}

// Header is a header of a record. What a record has besides a task is bounded by the router.
type Header struct {
	Key   string `json:"key" msgpack:"key"`
	Value []byte `json:"value" msgpack:"value"`
}

// Attempt is one try on one device, recorded for later attempts and the result.
type Attempt struct {
	Number   int        `json:"number" msgpack:"number"`
	Model    string     `json:"model,omitempty" msgpack:"model,omitempty"`
	DeviceID string     `json:"device_id" msgpack:"device_id"`
	Class    ErrorClass `json:"class,omitempty" msgpack:"class,omitempty"`
	Status   int        `json:"status,omitempty" msgpack:"status,omitempty"` // HTTP status, 0 without a response
	Message  string     `json:"message,omitempty" msgpack:"message,omitempty"`
	At       time.Time  `json:"at" msgpack:"at"`
	Duration int64      `json:"duration_ms" msgpack:"duration_ms"`
}

// Key is the identity of a task.
type Key struct{ Tenant, ID string }

// Key returns the task's identity.
func (t *Task) Key() Key { return Key{t.Tenant, t.ID} }

func (k Key) String() string { return k.Tenant + "/" + k.ID }

// Hash returns a 16-byte digest of the identity, for Redis keys and buckets. A separator
// keeps the inputs of different identities different.
func (k Key) Hash() [16]byte {
	sum := sha256.Sum256([]byte(k.Tenant + "\x00" + k.ID))
	return [16]byte(sum[:16])
}

// Tried returns the number of the last attempt, 0 if there were no attempts.
func (t *Task) Tried() int {
	if t.Progress == nil || len(t.Progress.Attempts) == 0 {
		return 0
	}
	return t.Progress.Attempts[len(t.Progress.Attempts)-1].Number
}

// Requeues returns how often Batchyard has written the task back to its topic.
func (t *Task) Requeues() int {
	if t.Progress == nil {
		return 0
	}
	return t.Progress.Requeues
}

// Generation returns which run of the task this is: 0 is the first, and each retry on request is one more.
func (t *Task) Generation() int {
	if t.Progress == nil {
		return 0
	}
	return t.Progress.Generation
}

// Excludes reports whether the task must not be tried on the device again.
func (t *Task) Excludes(device string) bool {
	return t.Progress != nil && slices.Contains(t.Progress.Exclude, device)
}

// ReadyAt returns the earliest time at which the task may be assigned; zero means now.
func (t *Task) ReadyAt() time.Time {
	if t.Progress != nil && t.Progress.NotBefore.After(t.NotBefore) {
		return t.Progress.NotBefore
	}
	return t.NotBefore
}

// Requeued returns a copy to write back to its topic. It does not share progress with the
// original, counts one more requeue, and has no backoff.
func (t *Task) Requeued() *Task {
	c := *t
	p := Progress{}
	if t.Progress != nil {
		p = *t.Progress
		p.Attempts = slices.Clone(p.Attempts)
		p.Exclude = slices.Clone(p.Exclude)
	}
	p.Requeues++
	p.BackoffMS, p.NotBefore = 0, time.Time{}
	c.Progress = &p
	return &c
}

// NewID returns a new task id: a UUIDv7, so that ids sort by time.
func NewID() string {
	id, err := uuid.NewV7()
	if err != nil { // the system's random source is broken; without it, ids could collide
		panic(fmt.Sprintf("making a task id: %v", err))
	}
	return id.String()
}

// NewTraceID returns a random W3C trace id.
func NewTraceID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24: it crashes the program instead
	return hex.EncodeToString(b[:])
}

// Limits are the configurable limits of a task.
type Limits struct {
	MaxInput int // bytes of the input
}

// Normalize sets what the sender may omit: id, tenant, endpoint, priority, trace id and
// time of submission.
func (t *Task) Normalize(now time.Time) {
	if t.ID == "" {
		t.ID = NewID()
	}
	if t.Tenant == "" {
		t.Tenant = DefaultTenant
	}
	if t.Endpoint == "" {
		t.Endpoint = EndpointChat
	}
	if t.Priority == "" {
		t.Priority = Normal
	}
	if t.TraceID == "" {
		t.TraceID = NewTraceID()
	}
	if lower := strings.ToLower(t.TraceID); lower != t.TraceID { // W3C ids are lower-case
		t.TraceID = lower
	}
	if t.SubmittedAt.IsZero() {
		t.SubmittedAt = now.UTC().Truncate(time.Microsecond)
	}
}

// Validate returns the first problem of a normalized task, as a *FieldError, or nil.
func (t *Task) Validate(l Limits) error {
	for _, f := range []struct {
		name, value string
		max         int
		must        presence
	}{
		{"task_id", t.ID, MaxIDLength, true},
		{"tenant", t.Tenant, MaxIDLength, true},
		{"model", t.Model, MaxNameLength, true},
		{"session_id", t.SessionID, MaxNameLength, false},
		{"job_id", t.JobID, MaxIDLength, false},
		{"custom_id", t.CustomID, 512, false},
	} {
		if err := checkText(f.name, f.value, f.max, f.must); err != nil {
			return err
		}
	}
	if !slices.Contains(Endpoints, t.Endpoint) {
		return NewFieldError("endpoint", "use one of "+strings.Join(Endpoints, ", "), "unknown endpoint")
	}
	if !slices.Contains(Priorities, t.Priority) {
		return NewFieldError("priority", "use high, normal or low", "unknown priority")
	}
	if t.Level < 0 || t.Level > MaxLevel {
		return NewFieldError("level", "use 0 to 9, 9 first", "%d is out of range", t.Level)
	}
	if t.MaxAttempts < 0 || t.MaxAttempts > MaxAttemptsLimit {
		return NewFieldError("max_attempts", fmt.Sprintf("use 1 to %d, or omit it", MaxAttemptsLimit), "%d is out of range", t.MaxAttempts)
	}
	if t.TraceID != "" {
		if err := t.CheckTrace(); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		at   time.Time
	}{{"deadline", t.Deadline}, {"not_before", t.NotBefore}, {"submitted_at", t.SubmittedAt}} {
		if !timeInRange(f.at) {
			return NewFieldError(f.name, "send RFC 3339, or Unix seconds in MessagePack", "it is not between the years 1970 and 9998")
		}
	}
	if err := t.validateLists(); err != nil {
		return err
	}
	if t.Callback != nil {
		if err := CheckCallbackURL(t.Callback.URL); err != nil {
			return err
		}
	}
	if t.Progress != nil && !t.Progress.valid() {
		return NewFieldError("progress", "omit it: it is set by Batchyard", "it is out of range")
	}
	return t.Input.validate(l.MaxInput)
}

// valid reports whether Batchyard may have written the progress. Invalid progress would
// end up in a result that the recorder refuses, so that the task would never end.
func (p *Progress) valid() bool {
	if p.Requeues < 0 || p.Generation < 0 || p.Generation > maxGeneration || len(p.Attempts) > 4*MaxAttemptsLimit || len(p.Exclude) > 4*MaxAttemptsLimit ||
		p.BackoffMS < 0 || p.BackoffMS > maxBackoff.Milliseconds() || checkText("", p.RequestedModel, MaxNameLength, optional) != nil {
		return false
	}
	for i := range p.Attempts {
		a := &p.Attempts[i]
		if a.Number < 1 || a.Number > maxAttemptNumber || a.Status < 0 || a.Status > 999 || len(a.Message) > maxMessage || !timeInRange(a.At) ||
			checkText("", a.DeviceID, MaxNameLength, optional) != nil {
			return false
		}
	}
	for _, d := range p.Exclude {
		if checkText("", d, MaxNameLength, required) != nil {
			return false
		}
	}
	return true
}

func timeInRange(at time.Time) bool {
	return at.IsZero() || !at.Before(earliestTime) && at.Before(latestTime)
}

func (t *Task) validateLists() error {
	if len(t.Needs) > MaxNeeds {
		return NewFieldError("needs", "send fewer tags", "it has %d tags, the limit is %d", len(t.Needs), MaxNeeds)
	}
	for i, n := range t.Needs {
		if err := checkText(fmt.Sprintf("needs[%d]", i), n, MaxNameLength, required); err != nil {
			return err
		}
	}
	if len(t.DependsOn) > 0 { // ignoring it would run the task too early
		return NewFieldError("depends_on", "omit it, and submit the task once the others have finished", "dependencies are not supported yet")
	}
	if len(t.Labels) > MaxLabels {
		return NewFieldError("labels", "send fewer labels", "it has %d labels, the limit is %d", len(t.Labels), MaxLabels)
	}
	for k, v := range t.Labels {
		if err := checkText("labels", k, 64, required); err != nil {
			return err
		}
		if err := checkText("labels."+k, v, 512, optional); err != nil {
			return err
		}
	}
	return nil
}

// CheckCallbackURL checks the URL of a callback. Whether its address may be dialled is
// checked at every delivery, after DNS.
func CheckCallbackURL(raw string) error {
	const remedy = "send an absolute http or https URL without credentials"
	if raw == "" {
		return NewFieldError("callback.url", remedy, "it is missing")
	}
	if len(raw) > MaxURLLength {
		return NewFieldError("callback.url", remedy, "it is longer than %d characters", MaxURLLength)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || !utf8.ValidString(raw) {
		return NewFieldError("callback.url", remedy, "it is not such a URL")
	}
	return nil
}

// presence says whether a text may be empty.
type presence bool

const (
	optional presence = false
	required presence = true
)

// checkText rejects text that Postgres or logs cannot handle: control characters (Postgres
// cannot store NUL), invalid UTF-8, and too many characters.
func checkText(field, s string, limit int, must presence) error {
	if s == "" {
		if must == required {
			return NewFieldError(field, "set it", "it is missing")
		}
		return nil
	}
	if len(s) <= limit && Plain(s) {
		return nil
	}
	if !utf8.ValidString(s) {
		return NewFieldError(field, "send UTF-8", "it is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(s); n > limit {
		return NewFieldError(field, "shorten it", "it has %d characters, the limit is %d", n, limit)
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return NewFieldError(field, "send printable text", "it contains the control character %U", r)
		}
	}
	return nil
}

// Plain reports whether s is printable ASCII, as most names are; other text needs a closer
// look. It checks eight bytes at a time, see strictjson.SkipPlain.
func Plain(s string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	if len(s) < 8 {
		for i := range len(s) {
			if s[i]-' ' >= 0x7f-' ' {
				return false
			}
		}
		return true
	}
	odd := uint64(0)
	for {
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		del := x ^ ones*0x7f
		odd |= x | (x-ones*' ')&^x | (del-ones)&^del
		if len(s) == 8 {
			return odd&highs == 0
		}
		s = s[min(8, len(s)-8):] // the last eight may overlap those before
	}
}

// Clip shortens untrusted text for an error message.
func Clip(s string) string {
	const most = 64
	if len(s) <= most {
		return strings.ToValidUTF8(s, "�")
	}
	return strings.ToValidUTF8(s[:most], "�") + "…"
}

// CheckTrace checks only the trace id.
func (t *Task) CheckTrace() error {
	if !isTrace(t.TraceID) {
		return NewFieldError("trace_id", "send 32 lower-case hex digits that are not all 0, or omit it", "it is not a W3C trace id")
	}
	return nil
}

func isTrace(s string) bool { return isHex(s, 32) }

// isHex reports whether s is n lower-case hex digits, not all of them 0.
func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	some := false
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
		some = some || c != '0'
	}
	return some
}

// TraceOf returns the trace id in the value of a W3C traceparent header. It returns "" for an
// invalid value, which W3C Trace Context says to ignore: capitals, or ids that are all 0.
func TraceOf(traceparent string) string {
	const length = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	v := strings.TrimSpace(traceparent)
	if len(v) < length || len(v) > 512 {
		return ""
	}
	version, trace, parent := v[:2], v[3:35], v[36:52]
	later := version != "00" // may have more fields
	if v[2] != '-' || v[35] != '-' || v[52] != '-' || !isTrace(trace) || !isHex(parent, 16) || version == "ff" ||
		!isHex("1"+version, 3) || !isHex("1"+v[53:55], 3) || len(v) > length && (!later || v[length] != '-') {
		return ""
	}
	return trace
}
