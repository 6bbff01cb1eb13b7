package batchyard

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
)

// The headers of a webhook, by the Standard Webhooks specification.
const (
	HeaderWebhookID        = "Webhook-Id"        // the same at every delivery of the same callback
	HeaderWebhookTimestamp = "Webhook-Timestamp" // Unix seconds of this delivery
	HeaderWebhookSignature = "Webhook-Signature" // one or more signatures, separated by spaces
)

const (
	// webhookTolerance is how far a timestamp may be from the receiver's clock.
	webhookTolerance = 5 * time.Minute
	// maxWebhook bounds the body that Handler reads. Batchyard leaves out outputs of
	// more than 4 MiB at most; the rest of a result is small.
	maxWebhook = 8 << 20
	// maxSignatures bounds how many signatures are tried.
	maxSignatures = 64
)

// What is wrong with a webhook, for [errors.Is]; a [*WebhookError] says more.
var (
	// ErrWebhookSignature says that no secret signed the request: it does not come
	// from your Batchyard, or was changed on the way.
	ErrWebhookSignature = errors.New("the webhook's signature is wrong")
	// ErrWebhookExpired says that the timestamp is too far from now: someone may be
	// replaying an old request, or a clock is wrong.
	ErrWebhookExpired = errors.New("the webhook's timestamp is too far from now")
	// ErrWebhookMalformed says that a header is missing or unreadable, or that the
	// body is not a callback.
	ErrWebhookMalformed = errors.New("the webhook is malformed")
)

// WebhookError says what is wrong with a webhook. It matches [ErrWebhookSignature],
// [ErrWebhookExpired] or [ErrWebhookMalformed].
type WebhookError struct {
	Kind   error  // one of those three
	Detail string // which header or what part, without what was in it
}

func (e *WebhookError) Error() string { return e.Kind.Error() + ": " + e.Detail }

func (e *WebhookError) Unwrap() error { return e.Kind }

// The types of callbacks.
const (
	CallbackCompleted = "task.completed" // SUCCESS
	CallbackFailed    = "task.failed"    // FAILED
	CallbackCancelled = "task.cancelled" // CANCELLED
	CallbackExpired   = "task.expired"   // EXPIRED
	CallbackJob       = "job.finished"   // every task of a job has ended; [Callback.Job] has its summary
)

// Callback is the body of a webhook: a task has ended, or a job.
//
// Webhooks arrive at least once, with the same ID and body every time. Remember the
// ID, or make what you do with the result safe to repeat.
type Callback struct {
	ID        string       `json:"id"`         // equals the header Webhook-Id
	Object    string       `json:"object"`     // "event"
	Type      string       `json:"type"`       // CallbackCompleted and so on
	CreatedAt int64        `json:"created_at"` // Unix seconds at which the task ended
	Data      CallbackData `json:"data"`       // of a task
	Job       *task.Job    `json:"-"`          // of a job; nil for a task
}

// CallbackData is the task as [Client.Get] returns it.
type CallbackData struct {
	TaskStatus
	Truncated bool   `json:"truncated,omitempty"`  // the output is too large for a callback: Get the task
	OutputURL string `json:"output_url,omitempty"` // where it is then, relative to the API
}

// ParseCallback reads the body of a webhook without verifying it: only for
// development, with the setting callbacks.unsigned. Anyone can send such a request.
func ParseCallback(body []byte) (*Callback, error) {
	var c Callback
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, &WebhookError{ErrWebhookMalformed, "the body is not a callback"}
	}
	if c.Type == CallbackJob {
		var j struct{ Data task.Job }
		if err := json.Unmarshal(body, &j); err != nil || c.ID == "" || j.Data.JobID == "" {
			return nil, &WebhookError{ErrWebhookMalformed, "the body lacks the id of the callback or the job"}
		}
		c.Job, c.Data = &j.Data, CallbackData{}
		return &c, nil
	}
	if c.ID == "" || c.Data.TaskID == "" || !c.Data.State.Terminal() {
		return nil, &WebhookError{ErrWebhookMalformed, "the body lacks the id of the callback or the task, or a terminal state"}
	}
	return &c, nil
}

// VerifyWebhook verifies a request with one secret, at the present time, and
// returns its callback. body is the request's body, byte for byte. The error of an
// unusable secret is not a [*WebhookError]. For several secrets, other clocks and a
// handler, see [Webhooks].
func VerifyWebhook(secret string, header http.Header, body []byte) (*Callback, error) {
	w, err := NewWebhooks(WebhookConfig{Secrets: []string{secret}})
	if err != nil {
		return nil, err
	}
	return w.Verify(header, body)
}

// WebhookConfig says which webhooks to accept.
type WebhookConfig struct {
	// Secrets are the signing secrets, whsec_ and 24 to 64 bytes in base64 each. A
	// webhook that one of them signed is accepted: while a secret is being replaced,
	// name both.
	Secrets []string
	// Tolerance is how far a timestamp may be from now; 0: 5 minutes.
	Tolerance time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Webhooks verifies webhooks. It may be used by any number of goroutines.
type Webhooks struct {
	keys      [][]byte
	tolerance time.Duration
	now       func() time.Time
}

// NewWebhooks returns a verifier. An error says which secret is unusable.
func NewWebhooks(cfg WebhookConfig) (*Webhooks, error) {
	w := &Webhooks{tolerance: cfg.Tolerance, now: cfg.Now}
	if w.tolerance == 0 {
		w.tolerance = webhookTolerance
	}
	if w.now == nil {
		w.now = time.Now
	}
	for i, s := range cfg.Secrets {
		text, ok := strings.CutPrefix(s, "whsec_")
		key, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil || len(key) < 24 || len(key) > 64 {
			return nil, fmt.Errorf("webhook secret %d is unusable: it must be whsec_ and 24 to 64 bytes in base64", i+1)
		}
		w.keys = append(w.keys, key)
	}
	if len(w.keys) == 0 {
		return nil, errors.New("verifying webhooks takes a secret: name the one that Batchyard signs with")
	}
	return w, nil
}

// Verify returns the callback of a request whose signature and timestamp are right.
// body is the request's body, byte for byte. The error is a [*WebhookError].
func (w *Webhooks) Verify(header http.Header, body []byte) (*Callback, error) {
	id, stamp, signatures := header.Get(HeaderWebhookID), header.Get(HeaderWebhookTimestamp), header.Get(HeaderWebhookSignature)
	for _, h := range []struct{ name, value string }{
		{HeaderWebhookID, id}, {HeaderWebhookTimestamp, stamp}, {HeaderWebhookSignature, signatures},
	} {
		if h.value == "" {
			return nil, &WebhookError{ErrWebhookMalformed, "the header " + h.name + " is missing"}
		}
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return nil, &WebhookError{ErrWebhookMalformed, "the header " + HeaderWebhookTimestamp + " is not a number of seconds"}
	}
	now := w.now()
	if at := time.Unix(seconds, 0); at.Before(now.Add(-w.tolerance)) || at.After(now.Add(w.tolerance)) {
		return nil, &WebhookError{ErrWebhookExpired, fmt.Sprintf("more than %s", w.tolerance)}
	}
	if !w.signed(id, stamp, body, signatures) {
		return nil, &WebhookError{ErrWebhookSignature, "none of the secrets made it"}
	}
	return ParseCallback(body)
}

// signed reports whether one of our keys made one of the signatures.
func (w *Webhooks) signed(id, stamp string, body []byte, signatures string) bool {
	given := strings.Fields(signatures)
	for _, key := range w.keys {
		mac := hmac.New(sha256.New, key)
		_, _ = io.WriteString(mac, id+"."+stamp+".") // a hash takes everything
		_, _ = mac.Write(body)
		want := mac.Sum(nil)
		for _, s := range given[:min(len(given), maxSignatures)] {
			text, ok := strings.CutPrefix(s, "v1,")
			got, err := base64.StdEncoding.DecodeString(text)
			if ok && err == nil && hmac.Equal(got, want) {
				return true
			}
		}
	}
	return false
}

// Handler verifies each request and calls fn with its callback. It answers 204 when
// fn returns nil. Any other answer makes Batchyard deliver the callback again, until
// its retries are used up: 500 when fn fails, 400, 401 or 413 for a request that
// cannot be accepted.
func (w *Webhooks) Handler(fn func(ctx context.Context, c *Callback) error) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			rw.Header().Set("Allow", http.MethodPost)
			http.Error(rw, "webhooks are sent by POST", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxWebhook))
		var large *http.MaxBytesError
		switch {
		case errors.As(err, &large):
			http.Error(rw, "the body is too large", http.StatusRequestEntityTooLarge)
			return
		case err != nil:
			http.Error(rw, "the body ended early", http.StatusBadRequest)
			return
		}
		c, err := w.Verify(r.Header, body)
		switch {
		case errors.Is(err, ErrWebhookMalformed):
			http.Error(rw, err.Error(), http.StatusBadRequest)
		case err != nil:
			http.Error(rw, err.Error(), http.StatusUnauthorized)
		case fn(r.Context(), c) != nil:
			http.Error(rw, "the callback was not processed", http.StatusInternalServerError)
		default:
			rw.WriteHeader(http.StatusNoContent)
		}
	})
}
