package callbacks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/task"
)

// The states of a row.
const (
	stateDue       = "DUE"
	stateDelivered = "DELIVERED"
	stateGivenUp   = "GIVEN_UP"
)

// outcome is the outcome of a delivery.
type outcome struct {
	state   string
	status  int    // of the answer; 0: there was none
	problem string // why it failed; empty on success
	class   task.ErrorClass
	pause   time.Duration // until the next delivery
	took    time.Duration
	at      time.Time // when it ended
}

// maxAnswer bounds how much of an answer is read. The answer is ignored; reading it allows the
// connection to be reused.
const maxAnswer = 64 << 10

// poster posts callbacks.
type poster struct {
	client  *http.Client
	signers []*standardwebhooks.Webhook
	cfg     Config
	retries []time.Duration
}

func newPoster(cfg Config) (*poster, error) {
	p := &poster{cfg: cfg}
	var err error
	if p.retries, err = cfg.retries(); err != nil {
		return nil, err
	}
	if p.signers, err = cfg.signers(); err != nil {
		return nil, err
	}
	guard, err := cfg.guard()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout, KeepAlive: 30 * time.Second}
	if guard != nil {
		dialer.Control = guard.Safe // checks the address from DNS at every dial
	}
	p.client = &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil, // a proxy could dial internal addresses for us
			DialContext:            dialer.DialContext,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxIdleConns:           cfg.Concurrency,
			MaxIdleConnsPerHost:    cfg.PerHost,
			MaxConnsPerHost:        cfg.PerHost,
			IdleConnTimeout:        30 * time.Second,
			TLSHandshakeTimeout:    cfg.Timeout,
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A redirect may lead anywhere, so it counts as the answer.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p, nil
}

// deliver POSTs a callback once and decides its next state.
func (p *poster) deliver(ctx context.Context, c *callback) outcome {
	start := time.Now()
	o := p.post(ctx, c)
	o.took = time.Since(start)
	switch {
	case o.state != "": // already decided
	case o.class == task.ClassDraining: // not the endpoint's fault: the next process may try at once
		o.state = stateDue
	case o.problem == "":
		o.state = stateDelivered
	case o.status == http.StatusGone || c.attempts > len(p.retries):
		o.state = stateGivenUp
	default:
		o.state = stateDue
		base := p.retries[c.attempts-1]
		o.pause = max(base+rand.N(base/5+1), o.pause)
	}
	return o
}

// post sends the request. The problem is empty only if the answer is 2xx.
func (p *poster) post(ctx context.Context, c *callback) (o outcome) {
	if !c.found {
		return outcome{state: stateGivenUp, problem: "the result no longer exists", class: task.ClassInternal}
	}
	body, err := c.body()
	if err != nil {
		return outcome{state: stateGivenUp, problem: err.Error(), class: task.ClassInternal}
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return outcome{state: stateGivenUp, problem: "the URL is invalid", class: task.ClassInvalid}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Batchyard-Callbacks/1")
	if err := p.sign(req.Header, c.id, time.Now(), body); err != nil {
		return outcome{problem: err.Error(), class: task.ClassInternal}
	}
	resp, err := p.client.Do(req)
	if err != nil {
		problem, class := explain(err)
		return outcome{problem: problem, class: class}
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // only the status matters
	o.status = resp.StatusCode
	switch {
	case o.status >= 200 && o.status < 300:
		return o
	case o.status >= 300 && o.status < 400:
		o.problem, o.class = fmt.Sprintf("status %d: redirects are not followed", o.status), task.ClassInvalid
	case o.status == http.StatusTooManyRequests:
		o.problem, o.class = "status 429", task.ClassThrottled
	case o.status < 500:
		o.problem, o.class = fmt.Sprintf("status %d", o.status), task.ClassInvalid
	default:
		o.problem, o.class = fmt.Sprintf("status %d", o.status), task.ClassReceiver
	}
	o.pause = min(retryAfter(resp.Header.Get("Retry-After"), time.Now()), p.cfg.MaxRetryAfter)
	return o
}

// sign adds the Standard Webhooks headers.
func (p *poster) sign(h http.Header, id string, at time.Time, body []byte) error {
	h.Set(standardwebhooks.HeaderWebhookID, id)
	h.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	var all []string
	for _, s := range p.signers {
		one, err := s.Sign(id, at, body)
		if err != nil {
			return fmt.Errorf("signing callback %s: %w", id, err)
		}
		all = append(all, one)
	}
	if len(all) > 0 {
		h.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(all, " "))
	}
	return nil
}

// maxProblem bounds the text of a problem, in bytes.
const maxProblem = 300

// explain describes an error of the HTTP client, without the URL, which may contain a secret.
func explain(err error) (string, task.ErrorClass) {
	if prohibited(err) {
		return "the address is not public: allow it with callbacks.allow_networks if that is intended", task.ClassInvalid
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	class := task.ClassConnect
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer in time", task.ClassTimeout
	}
	if errors.Is(err, context.Canceled) {
		return "the process stopped first", task.ClassDraining
	}
	return strings.ReplaceAll(text.Clip(err.Error(), maxProblem), "\x00", "?"), class // Postgres stores no NUL
}

// retryAfter returns how long a Retry-After header asks to wait, in seconds or until a date; 0 when it
// is missing or invalid.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil && n >= 0 {
		return time.Duration(min(n, int64(365*24*3600))) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
