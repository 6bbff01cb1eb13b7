package workers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/task"
)

// engine sends requests to OpenAI-compatible devices.
type engine struct {
	client *http.Client
	keys   map[string]string // API keys by device id; * for all others
	limit  int64             // of one task's answer, in bytes
}

func newEngine(cfg Config) (*engine, error) {
	keys := map[string]string{}
	for id, env := range cfg.DeviceKeyEnv {
		v := os.Getenv(env)
		if v == "" {
			return nil, fmt.Errorf("workers.device_key_env: environment variable %s for device %s is empty: set it to the API key, or remove the entry", env, id)
		}
		keys[id] = v
	}
	tr := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		// Shorter than the 5 s after which uvicorn and cpp-httplib close idle connections: a request that
		// meets the end of its connection is lost.
		MaxIdleConnsPerHost: 256, MaxIdleConns: 4096, IdleConnTimeout: 4 * time.Second,
		DisableCompression: true, // answers are small and devices are close
		ForceAttemptHTTP2:  true,
		ReadBufferSize:     16 << 10, WriteBufferSize: 16 << 10,
	}
	return &engine{
		client: &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		keys:   keys, limit: cfg.MaxAnswer,
	}, nil
}

// maxBatchedAnswer bounds the answer to a batched request, in bytes. If it is larger, the tasks are
// sent one by one.
const maxBatchedAnswer = 32 << 20

func (e *engine) close(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

// request is one HTTP request to a device.
type request struct {
	device   task.DeviceRef
	endpoint string
	body     []byte
	ids      []string // of the tasks, to be found in the device's logs
	traceID  string
	tasks    int
}

// do sends a request and returns the answer and its status. The failure is nil when the device answered
// 2xx with valid JSON; the status is 0 when there was no answer.
func (e *engine) do(ctx context.Context, r request) ([]byte, int, *Failure) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, joinURL(r.device.URL, r.endpoint), bytes.NewReader(r.body))
	if err != nil {
		return nil, 0, &Failure{Class: task.ClassConnect, Message: text.Clip(fmt.Sprintf("making a request to device %s: %v", r.device.ID, err), maxMessage)}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "batchyard")
	for _, id := range r.ids {
		req.Header.Add("X-Request-Id", id)
	}
	if len(r.traceID) == 32 {
		req.Header.Set("Traceparent", "00-"+r.traceID+"-"+r.traceID[:16]+"-01")
	}
	key, ok := e.keys[r.device.ID]
	if !ok {
		key = e.keys["*"]
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, 0, transportFailure(ctx, r.device.ID, err)
	}
	defer func() { _ = resp.Body.Close() }()
	limit := max(e.limit, min(e.limit*int64(max(1, r.tasks)), maxBatchedAnswer))
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		f := transportFailure(ctx, r.device.ID, err)
		if f.Status = resp.StatusCode; f.Class == task.ClassConnect { // it answered, and the connection broke
			f.Class = task.ClassDevice
		}
		return nil, resp.StatusCode, f
	}
	return classify(r.device.ID, resp, body, limit)
}

// classify decides from an answer who is to blame, if anyone.
func classify(id string, resp *http.Response, body []byte, limit int64) ([]byte, int, *Failure) {
	status := resp.StatusCode
	fail := func(c task.ErrorClass, msg string) ([]byte, int, *Failure) {
		f := &Failure{Class: c, Status: status, Message: msg, RetryAfter: retryAfter(resp.Header, time.Now())}
		if c == task.ClassInvalid && task.CheckJSON(body) == nil && int64(len(body)) <= limit {
			f.Body = body
		}
		return nil, status, f
	}
	switch {
	case status >= 200 && status < 300:
		if int64(len(body)) > limit {
			return fail(task.ClassInvalid, fmt.Sprintf("the answer of device %s exceeds %d bytes: ask for less output, or raise workers.max_answer", id, limit))
		}
		if err := task.CheckJSON(body); err != nil {
			return fail(task.ClassDevice, fmt.Sprintf("device %s answered %d with an invalid body: %v", id, status, err))
		}
		return body, status, nil
	case status == http.StatusTooManyRequests:
		return fail(task.ClassThrottled, fmt.Sprintf("device %s answered 429: too many requests", id))
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fail(task.ClassAuth, fmt.Sprintf("device %s answered %d: set its API key with workers.device_key_env", id, status))
	case status == http.StatusRequestTimeout || status == http.StatusConflict || status == http.StatusTooEarly || status == 499:
		return fail(task.ClassDevice, fmt.Sprintf("device %s answered %d", id, status))
	case status >= 400 && status < 500:
		return fail(task.ClassInvalid, fmt.Sprintf("device %s answered %d: %s", id, status, errorText(body)))
	}
	return fail(task.ClassDevice, fmt.Sprintf("device %s answered %d", id, status))
}

// maxMessage bounds the message of a failure, in bytes, because it travels with the task.
const maxMessage = 1024

// transportFailure classifies an error without an answer. Errors of the HTTP client contain the URL
// but never the body.
func transportFailure(ctx context.Context, id string, err error) *Failure {
	f := &Failure{Class: task.ClassConnect, Message: text.Clip(fmt.Sprintf("sending a request to device %s: %v", id, unwrapURL(err)), maxMessage)}
	var ne net.Error
	switch {
	case errors.Is(context.Cause(ctx), errCancelled):
		f.Class = task.ClassCancelled
	case errors.Is(context.Cause(ctx), errDraining), errors.Is(context.Cause(ctx), errLost):
		f.Class = task.ClassDraining
	case errors.Is(context.Cause(ctx), errExpired):
		f.Class, f.Message = task.ClassExpired, fmt.Sprintf("the deadline passed before device %s answered", id)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		f.Class, f.Message = task.ClassTimeout, fmt.Sprintf("device %s did not answer in time", id)
	}
	return f
}

// unwrapURL removes the URL from an error of the HTTP client.
func unwrapURL(err error) error {
	if u := errors.Unwrap(err); u != nil {
		return u
	}
	return err
}

// joinURL appends the endpoint to a device's base URL, which may end with /v1.
func joinURL(base, endpoint string) string {
	base = strings.TrimRight(base, "/")
	if strings.HasSuffix(base, "/v1") {
		endpoint = strings.TrimPrefix(endpoint, "/v1")
	}
	return base + endpoint
}
