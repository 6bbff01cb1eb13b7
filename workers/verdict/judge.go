package verdict

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Reply is an HTTP answer of a device.
type Reply struct {
	Device   string
	Endpoint string
	Tasks    int // that the request asked for
	Status   int
	Header   http.Header
	Body     []byte // at most Limit + 1 bytes
	Limit    int64
}

// Judge returns why the answer is no success; nil if it is one.
func (r *Reply) Judge(now time.Time) *Failure {
	kind, why := r.kind()
	if kind == "" {
		return nil
	}
	f := newFailure(kind, r.Status, "{device}", r.Device, "{status}", strconv.Itoa(r.Status), "{why}", why, "{limit}", strconv.FormatInt(r.Limit, 10))
	if kind == TooLong {
		f.Context = errorOf(r.Body).context()
	}
	switch row := f.Row(); {
	case row.Next == AfterPause:
		f.Pause = retryAfter(r.Header, now)
	case row.Class == task.ClassInvalid || row.Class == task.ClassDeclined:
		if int64(len(r.Body)) <= r.Limit && task.CheckJSON(r.Body) == nil {
			f.Body = r.Body
		}
	}
	return f
}

// kind finds the row; empty for a success.
func (r *Reply) kind() (k Kind, why string) {
	if r.Status >= 200 && r.Status < 300 {
		if int64(len(r.Body)) > r.Limit {
			return Endless, ""
		}
		return r.answered()
	}
	said := errorOf(r.Body)
	why = said.text()
	switch s := r.Status; {
	case s < 400:
		return Redirect, why
	case s == http.StatusUnauthorized || s == http.StatusForbidden || s == http.StatusBadRequest && said.wrongKey():
		return Auth, why
	case s == http.StatusTooManyRequests:
		return TooMany, why
	case (s < 500 || s == http.StatusInternalServerError) && said.tooLong():
		return TooLong, why
	case s < 500 && r.Tasks > 1 && (s == http.StatusRequestEntityTooLarge || said.batchTooLarge()):
		return BatchTooLarge, why
	case s < 500 && said.noModel():
		return NoModel, why
	case s >= 500:
		return r.failed(said), why
	}
	switch r.Status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		return NoEndpoint, why
	case http.StatusRequestEntityTooLarge:
		return BodyTooLarge, why
	case http.StatusRequestHeaderFieldsTooLarge:
		return HeadersTooLarge, why
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, 499:
		return NotNow, why
	case http.StatusFailedDependency:
		return GenerationFailed, why
	}
	return Invalid, why
}

// statusOverloaded is what Anthropic's API, and proxies in front of it, answer under load.
const statusOverloaded = 529

// failed finds the row of an answer from 500 on.
func (r *Reply) failed(said saidError) Kind {
	asks := r.Header.Get("Retry-After") != "" || r.Header.Get("Retry-After-Ms") != ""
	switch s := r.Status; {
	case (s == http.StatusServiceUnavailable || s == statusOverloaded) && asks:
		return Paused
	case s == statusOverloaded:
		return Overloaded
	case s == http.StatusServiceUnavailable && said.loading():
		return Loading
	case s == http.StatusServiceUnavailable:
		return Unavailable
	case s == http.StatusNotImplemented:
		return NoEndpoint
	case s == http.StatusBadGateway || said.behind():
		return BadGateway
	case s == http.StatusGatewayTimeout:
		return GatewayTimeout
	}
	return ServerError
}

// MaxPause bounds the pause that a device can ask for.
const MaxPause = 24 * time.Hour

// retryAfter returns how long a device asks to wait, which it gives as milliseconds, seconds
// or a date. A date is by the device's clock, like the date of the answer, and not by ours.
func retryAfter(h http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms >= 0 && ms < 1e12 {
		return min(MaxPause, time.Duration(ms*float64(time.Millisecond)))
	}
	v := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil && s >= 0 && s < 1e9 {
		return min(MaxPause, time.Duration(s*float64(time.Second)))
	}
	if at, err := http.ParseTime(v); err == nil {
		if sent, err := http.ParseTime(h.Get("Date")); err == nil {
			now = sent
		}
		return max(0, min(MaxPause, at.Sub(now)))
	}
	return 0
}

// Progress is how far a request came.
type Progress struct {
	Connected bool // it had a connection
	Kept      bool // which had been used before, and the error came at once
	Answered  bool // the first byte of the answer came
}

// Broken returns what an error means that left a request without a whole answer; status is 0 if
// there was none.
func Broken(device string, status int, p Progress, err error) *Failure {
	return newFailure(p.kind(err), status, "{device}", device, "{why}", causeOf(err))
}

func (p Progress) kind(err error) Kind {
	var ne net.Error
	timeout := errors.As(err, &ne) && ne.Timeout()
	switch {
	case !p.Answered && isTLS(err):
		return TLS
	case !p.Connected && timeout:
		return ConnectTimeout
	case !p.Connected:
		return Refused
	case timeout && p.Answered:
		return SlowBody
	case timeout:
		return NoFirstByte
	case p.Answered:
		return Cut
	case p.Kept:
		return Stale
	}
	return Reset
}

// isTLS reports whether the connection was refused by one of its ends because of TLS.
func isTLS(err error) bool {
	var (
		record    tls.RecordHeaderError
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		op        *net.OpError
	)
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) || errors.As(err, &verify) || errors.As(err, &authority) ||
		errors.As(err, &host) || errors.As(err, &invalid) || errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error")
}

// causeOf describes an error of the HTTP client, without the URL. It never has the body.
func causeOf(err error) string {
	if u := errors.Unwrap(err); u != nil {
		return u.Error()
	}
	return err.Error()
}
