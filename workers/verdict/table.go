package verdict

import (
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/task"
)

// Kind names a row of [Table].
type Kind string

// Fault is whose fault it is.
type Fault string

// Whose fault it is.
const (
	OfDevice  Fault = "device"
	OfTask    Fault = "task"
	OfPair    Fault = "pair"
	OfNeither Fault = "neither"
)

// Next is what follows for the task.
type Next string

// What follows for the task.
const (
	Here       Next = "here, then elsewhere"
	Elsewhere  Next = "elsewhere, not here again"
	Others     Next = "elsewhere, until every device that could run it has declined"
	Fifth      Next = "elsewhere, until a fifth device refuses it"
	Second     Next = "elsewhere, until a second device says so"
	AfterPause Next = "later: elsewhere, or here after the pause"
	Soon       Next = "soon, on any device"
	Resend     Next = "at once, on a fresh connection"
	Halves     Next = "here, in two halves"
	Never      Next = "not at all"
)

// Counts is what the breaker of the device counts.
type Counts string

// What the breaker counts.
const (
	CountsFault    Counts = "a fault"
	CountsFirst    Counts = "a fault, unless the task failed on another device before"
	CountsTimeout  Counts = "the same, and fewer requests at a time"
	CountsSuspect  Counts = "the same, a quarter while it answers others"
	CountsSuccess  Counts = "a success"
	CountsThrottle Counts = "nothing; fewer requests at a time"
	CountsNothing  Counts = "nothing"
)

// Row says what one way for a request to end means.
type Row struct {
	Kind    Kind
	Seen    string // what the worker sees
	Fault   Fault
	Next    Next
	Attempt Use // whether it uses up one of the task's attempts
	Counts  Counts
	Class   task.ErrorClass
	LetGo   int    // after so many in a row for an endpoint and model, the device gets no more of them for a while; 0: never
	Alone   Blame  // whether one task of a batched request may be to blame for it
	Reads   string // what the user reads: {device}, {status}, {why} and {limit} are filled in
}

// Use says whether a request uses up an attempt of its task.
type Use bool

// Whether it does.
const (
	UsesAttempt Use = true
	UsesNone    Use = false
)

// Blame says whether one task may be to blame for what a batched request ended in: it is then
// found by bisection.
type Blame bool

// Whether one may.
const (
	MayBeOne Blame = true
	AllAlike Blame = false
)

// The kinds without an answer.
const (
	Refused        Kind = "refused"
	ConnectTimeout Kind = "connect_timeout"
	TLS            Kind = "tls"
	Stale          Kind = "stale"
	Reset          Kind = "reset"
	NoFirstByte    Kind = "no_first_byte"
	SlowBody       Kind = "slow_body"
	Cut            Kind = "cut"
)

// The kinds of answers that are no success.
const (
	Redirect         Kind = "redirect"
	Invalid          Kind = "invalid"
	Unproven         Kind = "unproven"
	Auth             Kind = "auth"
	NoEndpoint       Kind = "no_endpoint"
	NoModel          Kind = "no_model"
	TooLong          Kind = "too_long"
	BodyTooLarge     Kind = "body_too_large"
	BatchTooLarge    Kind = "batch_too_large"
	HeadersTooLarge  Kind = "headers_too_large"
	NotNow           Kind = "not_now"
	GenerationFailed Kind = "generation_failed"
	TooMany          Kind = "too_many"
	Overloaded       Kind = "overloaded"
	Paused           Kind = "paused"
	Loading          Kind = "loading"
	Unavailable      Kind = "unavailable"
	ServerError      Kind = "server_error"
	BadGateway       Kind = "bad_gateway"
	GatewayTimeout   Kind = "gateway_timeout"
)

// The kinds of 2xx that hold no answer.
const (
	BrokenJSON  Kind = "broken_json"
	ErrorObject Kind = "error_object"
	NoAnswer    Kind = "no_answer"
	Aborted     Kind = "aborted"
	Unfinished  Kind = "unfinished"
	Unsuccess   Kind = "unsuccessful"
	Endless     Kind = "endless"
	Unsplit     Kind = "unsplit"
)

// The kinds that say nothing about the device.
const (
	BreakerOpen Kind = "breaker_open"
	Cancelled   Kind = "cancelled"
	Draining    Kind = "draining"
	Expired     Kind = "expired"
	Unsendable  Kind = "unsendable"
	Oversized   Kind = "oversized"
)

// letGo is after how many refusals in a row a device that lacks an endpoint or model gets no more such
// requests for a while. Refusals of requests as invalid need more, because the requests may be.
const (
	letGo        = 5
	letGoInvalid = 20
)

// Table is what can happen to a request, and what it means.
var Table = []Row{
	{Refused, "connection refused, no route, or an unknown name", OfDevice, Here, UsesAttempt, CountsFault, task.ClassConnect, 0, AllAlike,
		"device {device} cannot be reached: {why}"},
	{ConnectTimeout, "no connection, or no TLS handshake, in time", OfDevice, Here, UsesAttempt, CountsFault, task.ClassConnect, 0, AllAlike,
		"device {device} cannot be reached in time: {why}"},
	{TLS, "an untrusted or wrong certificate, or no TLS at all", OfDevice, Elsewhere, UsesAttempt, CountsFault, task.ClassConnect, 0, AllAlike,
		"device {device} cannot be trusted: {why}"},
	{Stale, "a kept connection is found closed before the first byte", OfNeither, Resend, UsesNone, CountsNothing, task.ClassNone, 0, AllAlike,
		"nothing: only the second try counts"},
	{Reset, "the connection is reset or closed before the first byte", OfDevice, Here, UsesAttempt, CountsFirst, task.ClassDevice, 0, AllAlike,
		"device {device} closed the connection without an answer: {why}"},
	{NoFirstByte, "no first byte within workers.request_timeout", OfDevice, Here, UsesAttempt, CountsTimeout, task.ClassTimeout, 0, AllAlike,
		"device {device} did not answer in time"},
	{SlowBody, "an answer that began, and did not end within workers.request_timeout", OfDevice, Here, UsesAttempt, CountsTimeout, task.ClassTimeout, 0, AllAlike,
		"device {device} did not end its answer in time"},
	{Cut, "the connection breaks after the first byte, or the body is truncated", OfDevice, Here, UsesAttempt, CountsFirst, task.ClassDevice, 0, AllAlike,
		"the answer of device {device} broke off: {why}"},

	{Redirect, "3xx; redirects are not followed", OfPair, Others, UsesNone, CountsNothing, task.ClassDeclined, letGo, AllAlike,
		"device {device} redirects the endpoint ({status}): give its agent the final URL"},
	{Invalid, "400, 422, and other 4xx", OfTask, Second, UsesNone, CountsSuccess, task.ClassInvalid, letGoInvalid, MayBeOne,
		"device {device} answered {status}: {why}"},
	{Unproven, "the same, or an answer without an end, from a device that has not answered any request for the endpoint and model", OfPair, Fifth, UsesNone, CountsNothing, task.ClassDeclined, letGoInvalid, MayBeOne,
		"device {device} answered {status}: {why}"},
	{Auth, "401, 403, or 400 that says that the key is wrong", OfDevice, Elsewhere, UsesAttempt, CountsFault, task.ClassAuth, 0, AllAlike,
		"device {device} answered {status}: set its API key with key_env or key_file of its entry in devices.list"},
	{NoEndpoint, "404, 405, 410, 501", OfPair, Others, UsesNone, CountsNothing, task.ClassDeclined, letGo, AllAlike,
		"device {device} does not serve the endpoint ({status}); if its API is under another path, write the whole path in its url"},
	{NoModel, "400, 404, 422 or an error object that says that the model is missing", OfPair, Others, UsesNone, CountsNothing, task.ClassDeclined, letGo, AllAlike,
		"device {device} does not have the model ({status}: {why})"},
	{TooLong, "4xx, 500 or an error object that says that the prompt is too long", OfPair, Others, UsesNone, CountsSuccess, task.ClassDeclined, letGo, MayBeOne,
		"the prompt is too long for device {device} ({status}: {why})"},
	{BodyTooLarge, "413 for one task", OfPair, Others, UsesNone, CountsNothing, task.ClassDeclined, letGo, AllAlike,
		"the request is too large for device {device} ({status}: {why})"},
	{BatchTooLarge, "413, or 4xx about the batch size, for a batched request", OfPair, Halves, UsesNone, CountsNothing, task.ClassDeclined, 0, MayBeOne,
		"nothing: smaller requests follow, and the largest size that works is remembered"},
	{HeadersTooLarge, "431", OfPair, Others, UsesNone, CountsNothing, task.ClassDeclined, letGo, AllAlike,
		"device {device} does not accept the headers of the request ({status})"},
	{NotNow, "408, 409, 425, 499", OfDevice, Here, UsesAttempt, CountsFault, task.ClassDevice, 0, AllAlike,
		"device {device} answered {status}"},
	{GenerationFailed, "424 (TGI: the generation failed)", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"device {device} answered {status}: the generation failed"},
	{TooMany, "429, with or without Retry-After", OfNeither, AfterPause, UsesNone, CountsThrottle, task.ClassThrottled, 0, AllAlike,
		"device {device} answered {status}: too many requests"},
	{Overloaded, "529 without Retry-After", OfNeither, AfterPause, UsesNone, CountsThrottle, task.ClassThrottled, 0, AllAlike,
		"device {device} answered {status}: it is overloaded"},
	{Paused, "503 or 529 with Retry-After, in seconds or as a date", OfNeither, AfterPause, UsesNone, CountsNothing, task.ClassThrottled, 0, AllAlike,
		"device {device} answered {status} and asked for a pause"},
	{Loading, "503 that says that the model is loading", OfNeither, AfterPause, UsesNone, CountsNothing, task.ClassThrottled, 0, AllAlike,
		"device {device} answered {status}: it is loading its model"},
	{Unavailable, "503 without Retry-After", OfDevice, Here, UsesAttempt, CountsFault, task.ClassDevice, 0, AllAlike,
		"device {device} answered {status}: it is unavailable"},
	{ServerError, "500, and other 5xx", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"device {device} answered {status}"},
	{BadGateway, "502, or 500 in which LiteLLM says that it does not reach what is behind it", OfDevice, Here, UsesAttempt, CountsFault, task.ClassDevice, 0, AllAlike,
		"device {device} answered {status}: what is behind it does not work"},
	{GatewayTimeout, "504", OfDevice, Here, UsesAttempt, CountsTimeout, task.ClassTimeout, 0, AllAlike,
		"device {device} answered {status}: what is behind it did not answer in time"},

	{BrokenJSON, "2xx with invalid JSON, or an empty body", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, AllAlike,
		"device {device} answered {status} with an invalid body: {why}"},
	{ErrorObject, "2xx with an error object", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"device {device} answered {status} with an error: {why}"},
	{NoAnswer, "2xx with no answer in it: null, [], no choices, no data, no output", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"device {device} answered {status} without {why}"},
	{Aborted, "2xx with finish_reason abort or error", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"device {device} aborted the generation"},
	{Unfinished, "a response with status queued or in_progress", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, AllAlike,
		"device {device} answered before it had finished: {why}"},
	{Unsuccess, "a response with status failed or cancelled", OfDevice, Here, UsesAttempt, CountsSuspect, task.ClassDevice, 0, AllAlike,
		"device {device} answered that the response is {why}"},
	{Endless, "an answer of more than workers.max_answer, or without an end", OfTask, Second, UsesNone, CountsSuspect, task.ClassInvalid, 0, MayBeOne,
		"the answer of device {device} exceeds {limit} bytes: ask for less output, or raise workers.max_answer"},
	{Unsplit, "an answer to a batched request that does not fit its tasks", OfDevice, Halves, UsesNone, CountsSuspect, task.ClassDevice, 0, MayBeOne,
		"nothing: smaller requests follow"},

	{BreakerOpen, "the breaker of the device is open; nothing was sent", OfNeither, Soon, UsesNone, CountsNothing, task.ClassBreakerOpen, 0, AllAlike,
		"the breaker of device {device} is open"},
	{Cancelled, "the task was cancelled", OfNeither, Never, UsesNone, CountsNothing, task.ClassCancelled, 0, AllAlike,
		"the task was cancelled"},
	{Draining, "the worker stops, or the device belongs to another worker now", OfNeither, Soon, UsesNone, CountsNothing, task.ClassDraining, 0, AllAlike,
		"the worker stopped before device {device} answered"},
	{Expired, "the deadline of the task passed", OfNeither, Never, UsesNone, CountsNothing, task.ClassExpired, 0, AllAlike,
		"the deadline passed before device {device} answered"},
	{Unsendable, "the input makes no request", OfTask, Never, UsesNone, CountsNothing, task.ClassInvalid, 0, AllAlike,
		"{why}"},
	{Oversized, "a result, or the task with its attempts, that its topic does not accept", OfTask, Never, UsesNone, CountsNothing, task.ClassInvalid, 0, AllAlike,
		"{why}"},
}

var rows = func() map[Kind]*Row {
	m := make(map[Kind]*Row, len(Table))
	for i := range Table {
		m[Table[i].Kind] = &Table[i]
	}
	return m
}()

// Row returns the row of the kind; it panics if there is none.
func (k Kind) Row() *Row {
	r := rows[k]
	if r == nil {
		panic("no row of the table of failures is called " + string(k))
	}
	return r
}

// maxMessage bounds the message of a failure, in bytes, because it travels with the task.
const maxMessage = 1024

// Failure is why an attempt did not succeed.
type Failure struct {
	Kind    Kind
	Class   task.ErrorClass // of the kind's row
	Status  int             // HTTP status; 0: there was no answer
	Message string
	Body    []byte        // the device's JSON answer, when it explains what is wrong with the request
	Pause   time.Duration // asked for by the device
	Context int           // of a prompt that is too long: how many tokens the device takes, if it said so
}

// Doubted returns the failure as it means less, because the device has not shown that it answers others.
func (f *Failure) Doubted() *Failure {
	d := *f
	d.Kind, d.Class = Unproven, Unproven.Row().Class
	return &d
}

// Row returns what the failure means.
func (f *Failure) Row() *Row { return f.Kind.Row() }

// New returns a failure of a kind. why fills the row's {why}.
func New(k Kind, device, why string) *Failure {
	return newFailure(k, 0, "{device}", device, "{why}", why)
}

func newFailure(k Kind, status int, fill ...string) *Failure {
	row := k.Row()
	return &Failure{Kind: k, Class: row.Class, Status: status, Message: text.Clip(strings.NewReplacer(fill...).Replace(row.Reads), maxMessage)}
}
