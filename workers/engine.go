package workers

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/device/access"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

// engine sends requests to OpenAI-compatible devices.
type engine struct {
	book  *access.Book
	limit int64 // of one task's answer, in bytes
}

// newEngine returns an engine that reaches devices as they are described.
func newEngine(cfg Config, devices []access.Device) (*engine, error) {
	e := &engine{limit: cfg.MaxAnswer}
	e.book = access.New(func(c *tls.Config) *http.Transport {
		return &http.Transport{
			DialContext:         (&net.Dialer{Timeout: cmp.Or(cfg.ConnectTimeout, 5*time.Second), KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:     c,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 256, MaxIdleConns: 4096, IdleConnTimeout: idleTimeout,
			DisableCompression: true, // answers are small and devices are close
			ForceAttemptHTTP2:  true,
			ReadBufferSize:     16 << 10, WriteBufferSize: 16 << 10,
		}
	})
	return e, e.book.Load(devices)
}

// idleTimeout is how long connections are kept without a request: less than the 5 s after which uvicorn and
// cpp-httplib, and so most engines, close them.
const idleTimeout = 4 * time.Second

// maxBatchedAnswer bounds the answer to a batched request, in bytes. If it is larger, the tasks are
// sent one by one.
const maxBatchedAnswer = 32 << 20

func (e *engine) close(context.Context) error {
	e.book.CloseIdle()
	return nil
}

// request is one HTTP request to a device.
type request struct {
	device   task.DeviceRef
	endpoint string
	body     []byte
	id       string // of this request alone, to be found in the device's logs
	traceID  string
	tasks    int
}

// do sends a request and returns the answer and its status. The failure is nil when the device answered;
// the status is 0 when there was no answer. A request that was lost because the device had closed a kept
// connection is sent once more on a fresh one: the device never saw it.
func (e *engine) do(ctx context.Context, r request) ([]byte, int, *Failure) {
	answer, status, f := e.send(ctx, e.book.Send, r)
	if f != nil && f.Kind == verdict.Stale {
		answer, status, f = e.send(ctx, e.book.SendFresh, r)
	}
	return answer, status, f
}

// staleWithin is how soon after it was sent a request on a kept connection must be lost to be sent again. A
// device that closes a connection later had the request.
const staleWithin = time.Second

// send sends a request once.
func (e *engine) send(ctx context.Context, do func(name string, req *http.Request) (*http.Response, error), r request) ([]byte, int, *Failure) {
	var p progress
	req, err := e.newRequest(httptrace.WithClientTrace(ctx, p.trace()), r)
	if err != nil {
		return nil, 0, verdict.New(verdict.Refused, r.device.ID, err.Error())
	}
	resp, err := do(r.device.ID, req)
	if err != nil {
		return nil, 0, e.broken(ctx, r.device.ID, 0, p.seen(), err)
	}
	defer func() { _ = resp.Body.Close() }()
	limit := max(e.limit, min(e.limit*int64(max(1, r.tasks)), maxBatchedAnswer))
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, resp.StatusCode, e.broken(ctx, r.device.ID, resp.StatusCode, p.seen(), err)
	}
	reply := verdict.Reply{Device: r.device.ID, Endpoint: r.endpoint, Tasks: r.tasks, Status: resp.StatusCode, Header: resp.Header, Body: body, Limit: limit}
	if f := reply.Judge(time.Now()); f != nil {
		return nil, resp.StatusCode, f
	}
	return body, resp.StatusCode, nil
}

func (e *engine) newRequest(ctx context.Context, r request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, joinURL(r.device.URL, r.endpoint), bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "batchyard")
	if r.id != "" {
		req.Header.Set("X-Request-Id", r.id)
	}
	if len(r.traceID) == 32 {
		req.Header.Set("Traceparent", "00-"+r.traceID+"-"+r.traceID[:16]+"-01")
	}
	return req, nil
}

// broken says what an error without a whole answer means: why we hung up, if we did.
func (e *engine) broken(ctx context.Context, id string, status int, p verdict.Progress, err error) *Failure {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errCancelled):
		return verdict.New(verdict.Cancelled, id, "")
	case errors.Is(cause, errDraining), errors.Is(cause, errLost):
		return verdict.New(verdict.Draining, id, "")
	case errors.Is(cause, errExpired):
		return verdict.New(verdict.Expired, id, "")
	}
	return verdict.Broken(id, status, p, err)
}

// progress is how far a request came, as the HTTP client says from several goroutines.
type progress struct {
	connected, reused, answered atomic.Bool
	sent                        atomic.Int64
}

func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) {
			p.connected.Store(true)
			p.reused.Store(c.Reused)
			p.sent.Store(time.Now().UnixNano())
		},
		GotFirstResponseByte: func() { p.answered.Store(true) },
	}
}

// seen returns how far the request has come by now.
func (p *progress) seen() verdict.Progress {
	soon := time.Since(time.Unix(0, p.sent.Load())) < staleWithin
	return verdict.Progress{Connected: p.connected.Load(), Kept: p.reused.Load() && soon, Answered: p.answered.Load()}
}

// maxRequestID bounds the id of a request, in bytes: engines keep it, and some put it into their answers.
const maxRequestID = 96

// requestID returns a new id for the request of a call. It begins with the task, or the batch, to be
// found in the device's logs, and is never used again: engines refuse an id that is still running there.
func requestID(c *call) string {
	w := c.works[0]
	id := w.task().ID + "." + strconv.Itoa(w.number())
	if c.group != nil || len(id) > maxRequestID || !task.Plain(id) {
		id = w.batch
	}
	return id + "." + fmt.Sprintf("%08x", rand.Uint32())
}

// joinURL appends the endpoint to a device's base URL, which may end with /v1.
func joinURL(base, endpoint string) string {
	base = strings.TrimRight(base, "/")
	if strings.HasSuffix(base, "/v1") {
		endpoint = strings.TrimPrefix(endpoint, "/v1")
	}
	return base + endpoint
}
