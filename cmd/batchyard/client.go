package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/task"
)

const (
	// requestWait bounds a request, beside what the server is asked to wait.
	requestWait = 40 * time.Second
	// retryWait bounds how long a submit is tried again.
	retryWait = 2 * time.Minute
	// maxAnswer bounds an answer that is kept in memory: a page of tasks, or one
	// task with its result.
	maxAnswer = 64 << 20
	// maxResultLine bounds a line of a job's results.
	maxResultLine = 16 << 20
)

// client speaks to Batchyard's HTTP API.
type client struct {
	base   string
	tenant string
	key    string
	http   *http.Client
	pauses func() backoff.BackOff // between the tries of a submit
	known  atomic.Bool            // the server has answered: when it is away now, it may come back
}

// problemError is an answer that says what is wrong.
type problemError struct {
	api.Problem
	after time.Duration // of Retry-After
}

func (e *problemError) Error() string {
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	if text == "" {
		text = http.StatusText(e.Status)
	}
	if len(e.Errors) > 1 {
		for _, one := range e.Errors {
			text += fmt.Sprintf("\n%s: %s", one.Pointer, one.Detail)
		}
	}
	if e.Status >= 500 && e.TraceID != "" {
		text += fmt.Sprintf(" (status %d, trace id %s)", e.Status, e.TraceID)
	}
	return text
}

// code is the exit code that the answer stands for.
func (e *problemError) code() int {
	switch {
	case e.Status == http.StatusBadRequest || e.Status == http.StatusUnprocessableEntity || e.Status == http.StatusRequestEntityTooLarge:
		return exitUsage
	case e.passing() && e.Status != http.StatusTooManyRequests:
		return exitUnreachable
	}
	return exitFailed
}

// passing reports whether the same request may succeed later.
func (e *problemError) passing() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// client makes the client that the flags ask for.
func (c *cli) client() (*client, error) {
	u, err := url.Parse(c.server)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, usageError("--server must look like http://host:port, without credentials") // which it may hold
	}
	if strings.ContainsFunc(c.tenant, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(c.tenant) > 4*task.MaxIDLength {
		return nil, usageError("--tenant must be at most %d printable characters", task.MaxIDLength)
	}
	return &client{
		base: strings.TrimRight(u.String(), "/"), tenant: c.tenant, key: os.Getenv("BATCHYARD_SERVER_KEY"),
		pauses: func() backoff.BackOff {
			return backoff.NewExponentialBackOff(backoff.WithInitialInterval(200*time.Millisecond),
				backoff.WithMaxInterval(10*time.Second), backoff.WithMaxElapsedTime(retryWait))
		},
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
				TLSHandshakeTimeout:    5 * time.Second,
				MaxIdleConnsPerHost:    8,
				IdleConnTimeout:        time.Minute,
				MaxResponseHeaderBytes: 64 << 10,
			},
			// A redirect would carry tasks, or a key, to somebody unnamed.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// send makes one request. The caller closes the body of the answer, which is a
// good one; any other is a *problemError.
func (a *client) send(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	target := a.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("addressing the server: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "batchyard-cli/"+versionNumber())
	if a.tenant != "" {
		req.Header.Set("X-Batchyard-Tenant", a.tenant)
	}
	if a.key != "" {
		req.Header.Set("Authorization", "Bearer "+a.key)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, ctx.Err()
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the URL is told by us
		}
		return nil, &exitError{exitUnreachable, fmt.Errorf("connecting to the server at %s: %w; is it running, and is --server right?", a.base, err)}
	}
	if resp.StatusCode < 300 {
		a.known.Store(true)
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // what it says was read, or is not wanted
	return nil, a.problem(resp)
}

// problem reads an answer that is not a good one.
func (a *client) problem(resp *http.Response) error {
	p := &problemError{}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(text, &p.Problem) != nil || (p.Detail == "" && p.Title == "") {
		p.Problem = api.Problem{Detail: fmt.Sprintf("the server at %s answered with status %d (%s); is --server right?", a.base, resp.StatusCode, http.StatusText(resp.StatusCode))}
	}
	p.Status = resp.StatusCode
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		p.after = time.Duration(min(max(n, 0), 60)) * time.Second
	}
	return &exitError{p.code(), p}
}

// ask makes one request and returns the answer's bytes. wait is how long the
// server may take to answer because it is asked to.
func (a *client) ask(ctx context.Context, method, path string, query url.Values, body []byte, wait time.Duration) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, requestWait+wait)
	defer cancel()
	resp, err := a.send(limited, method, path, query, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &exitError{exitUnreachable, fmt.Errorf("reading the answer of the server at %s: %w", a.base, err)}
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("the answer of the server at %s is larger than %s; ask for less with --limit", a.base, size(maxAnswer))
	}
	return b, nil
}

// get reads an answer into a value.
func (a *client) get(ctx context.Context, path string, query url.Values, wait time.Duration, into any) error {
	b, err := a.ask(ctx, http.MethodGet, path, query, nil, wait)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("reading the answer of the server at %s: %w; is --server right?", a.base, err)
	}
	return nil
}

// Submit hands tasks over and returns when they are durable. What may pass is
// tried again: the tasks have ids, so that they are the same ones.
func (a *client) Submit(ctx context.Context, tasks []*task.Task) error {
	body, err := json.Marshal(tasks)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", counted(len(tasks), "task"), err)
	}
	pause := a.pauses()
	for {
		_, err := a.ask(ctx, http.MethodPost, "/v1/tasks", nil, body, 0)
		if err == nil || ctx.Err() != nil {
			return err
		}
		next := pause.NextBackOff()
		var p *problemError
		switch {
		case next == backoff.Stop:
			return err
		case errors.As(err, &p):
			if !p.passing() {
				return err
			}
			next = max(next, p.after)
		case !a.known.Load():
			return err // it has never been there
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// JobResults streams the results of a job. The tenant is the client's own.
func (a *client) JobResults(ctx context.Context, _, job string, fn func(*task.Result) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// There may be any number of results, but not any time between two of them.
	var silent atomic.Bool
	watch := time.AfterFunc(requestWait, func() {
		silent.Store(true)
		cancel()
	})
	defer watch.Stop()
	broken := func(err error) error {
		if silent.Load() {
			err = fmt.Errorf("nothing came for %s", requestWait)
		}
		return withCode(exitUnreachable, fmt.Errorf("reading the results of job %s from %s: %w", job, a.base, err))
	}
	resp, err := a.send(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(job)+"/results", nil, nil)
	if err != nil {
		if silent.Load() {
			return broken(err)
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or is not wanted
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 64<<10), maxResultLine)
	for lines.Scan() {
		watch.Reset(requestWait)
		r, err := task.DecodeResult(lines.Bytes(), task.ContentJSON)
		if err != nil {
			return fmt.Errorf("reading the results of job %s: %w", job, err)
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return broken(err)
	}
	return nil
}
