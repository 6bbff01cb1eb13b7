package batchyard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// RetryPolicy says how often, and for how long, a request that may succeed later
// is sent again. The zero value sends every request once.
type RetryPolicy struct {
	// MaxTries is how often a request is sent, the first time included. 0: as often
	// as MaxElapsed allows.
	MaxTries int
	// MaxElapsed is how long after the first try another one may begin. 0: as long
	// as MaxTries allows; with neither, there are no retries.
	MaxElapsed time.Duration
	// MinPause and MaxPause bound the pauses: the first is about MinPause, and each
	// is about one and a half times the one before. They default to 200 ms and 10 s.
	// A longer Retry-After of the server is respected.
	MinPause, MaxPause time.Duration
	// KnownOnly gives up at once on a server that cannot be reached and has never
	// answered this client: more likely its address is wrong than that it is down.
	// For programs that a person waits for.
	KnownOnly bool
}

// DefaultRetry is the policy of a client without [WithRetry].
var DefaultRetry = RetryPolicy{MaxElapsed: 2 * time.Minute}

func (p RetryPolicy) enabled() bool { return p.MaxTries > 1 || p.MaxTries == 0 && p.MaxElapsed > 0 }

// pauses returns the pauses between the tries of one request.
func (p RetryPolicy) pauses() *backoff.ExponentialBackOff {
	minPause, maxPause := p.MinPause, p.MaxPause
	if minPause == 0 {
		minPause = 200 * time.Millisecond
	}
	if maxPause == 0 {
		maxPause = 10 * time.Second
	}
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(min(minPause, maxPause)),
		backoff.WithMaxInterval(maxPause), backoff.WithMaxElapsedTime(p.MaxElapsed))
}

// call is one request.
type call struct {
	method, path string
	query        url.Values
	body         any           // sent as JSON; nil: no body
	wait         time.Duration // how long the server may take because it is asked to
	status       int           // the only one that is a success; 0: any below 300
}

// do makes a request, again while it may succeed later, and reads the answer into
// a value; nil discards it.
func (c *Client) do(ctx context.Context, q call, into any) error {
	var body []byte
	if q.body != nil {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false) // an input stays byte for byte as it is
		if err := enc.Encode(q.body); err != nil {
			return fmt.Errorf("%w: encoding the body of %s %s: %w", ErrInvalid, q.method, q.path, err)
		}
		body = b.Bytes()
	}
	var answer []byte
	err := c.retrying(ctx, func() (err error) {
		answer, err = c.ask(ctx, q, body)
		return err
	})
	if err != nil || into == nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("reading the answer of the server at %s to %s %s: %w; is the address right?", c.base, q.method, q.path, err)
	}
	if r, ok := into.(interface{ setRaw(b []byte) }); ok {
		r.setRaw(answer)
	}
	return nil
}

// retrying calls try until it succeeds, cannot succeed, or the policy gives up.
// The error is that of the last try.
func (c *Client) retrying(ctx context.Context, try func() error) error {
	pauses := c.retry.pauses()
	for tries := 1; ; tries++ {
		err := try()
		if err == nil || ctx.Err() != nil || !c.retry.enabled() || tries == c.retry.MaxTries || !errors.Is(err, ErrUnavailable) {
			return err
		}
		var away *ConnectionError
		if c.retry.KnownOnly && errors.As(err, &away) && !c.known.Load() {
			return err
		}
		pause := pauses.NextBackOff()
		if pause == backoff.Stop {
			return err
		}
		var refused *Error
		if errors.As(err, &refused) {
			pause = max(pause, refused.RetryAfter)
		}
		if sleep(ctx, pause) != nil {
			return err
		}
	}
}

// sleep returns after a pause, or with the context's error when that ends first.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// ask makes a request once and returns the answer's bytes.
func (c *Client) ask(ctx context.Context, q call, body []byte) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout+q.wait)
	defer cancel()
	answer, err := c.exchange(limited, q, body)
	var away *ConnectionError
	switch {
	case !errors.As(err, &away) || limited.Err() == nil:
		return answer, err
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s of the server at %s: %w", q.method, q.path, c.base, ctx.Err())
	}
	// Our own bound passed. The caller must not take it for the end of its context.
	return nil, &ConnectionError{Server: c.base, Err: fmt.Errorf("no answer within %s", requestTimeout+q.wait)}
}

func (c *Client) exchange(ctx context.Context, q call, body []byte) ([]byte, error) {
	resp, err := c.send(ctx, q, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or is not wanted
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &ConnectionError{Server: c.base, Err: err, reading: true}
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("the answer of the server at %s to %s %s is larger than %d MiB; ask for less", c.base, q.method, q.path, maxAnswer>>20)
	}
	return answer, nil
}

// send makes a request once. The caller closes the body of the answer, which is a
// success.
func (c *Client) send(ctx context.Context, q call, body []byte) (*http.Response, error) {
	target := c.base + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	var content io.Reader = http.NoBody
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, content)
	if err != nil {
		return nil, fmt.Errorf("addressing the server: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", c.agent)
	if c.tenant != "" {
		req.Header.Set("X-Batchyard-Tenant", c.tenant)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // ConnectionError names the server
		}
		return nil, &ConnectionError{Server: c.base, Err: err}
	}
	c.known.Store(true)
	if resp.StatusCode == q.status || q.status == 0 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // refusal has read what is wanted of it
	return nil, c.refusal(resp)
}

// answered keeps an answer as the server sent it.
type answered struct{ raw json.RawMessage }

// RawJSON is the JSON object as the server sent it, with fields that this version
// of the client does not know; nil for a value that the server did not send.
func (a answered) RawJSON() json.RawMessage { return a.raw }

func (a *answered) setRaw(b []byte) { a.raw = bytes.TrimSpace(b) }

// readAll reads each of a list of objects, and keeps it as it was sent.
func readAll[T any](raws []json.RawMessage) ([]T, error) {
	all := make([]T, len(raws))
	for i, raw := range raws {
		if err := json.Unmarshal(raw, &all[i]); err != nil {
			return nil, fmt.Errorf("element %d: %w", i, err)
		}
		if r, ok := any(&all[i]).(interface{ setRaw(b []byte) }); ok {
			r.setRaw(raw)
		}
	}
	return all, nil
}

// pathOf is a path of the API with an id in it, which may hold anything, slashes too.
func pathOf(collection, id, rest string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("%w: the id in /v1/%s/…%s is empty", ErrInvalid, collection, rest)
	}
	return "/v1/" + collection + "/" + url.PathEscape(id) + rest, nil
}
