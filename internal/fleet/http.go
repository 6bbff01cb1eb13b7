package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	bodyTimeout  = 30 * time.Second // to receive a request body
	writeTimeout = 30 * time.Second // to send an answer
	maxPooled    = 64 << 10         // bytes; larger buffers are not pooled
)

// buffers are the buffers of one request, pooled so that the hot path allocates
// almost nothing.
type buffers struct {
	body, answer []byte
	request      request
}

var pool = sync.Pool{New: func() any { return &buffers{body: make([]byte, 0, 4096), answer: make([]byte, 0, 4096)} }}

func (b *buffers) put() {
	if cap(b.body) > maxPooled || cap(b.answer) > maxPooled || cap(b.request.items) > maxItems {
		return
	}
	b.request.model = nil
	pool.Put(b)
}

// serve is the device's only handler.
func (d *Device) serve(w http.ResponseWriter, r *http.Request) {
	var k kind
	switch r.URL.Path {
	case "/v1/chat/completions":
		k = chat
	case "/v1/completions":
		k = completions
	case "/v1/embeddings":
		k = embeddings
	case "/v1/responses":
		k = responses
	case "/v1/moderations":
		k = moderations
	case "/health", "/health/liveliness", "/v1/models", "/metrics", "/props":
		d.serveStatus(w, r)
		return
	default:
		writeError(w, &apiError{status: 404, kind: "invalid_request_error", code: "unknown_url", message: "Unknown request URL: " + r.Method + " " + r.URL.Path})
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, &apiError{status: 405, kind: "invalid_request_error", code: "method_not_supported", message: "Not allowed to " + r.Method + " on " + r.URL.Path})
		return
	}
	countRequest(r)
	d.enter()
	defer d.inFlight.Add(-1)
	b := pool.Get().(*buffers)
	defer b.put()
	switch err := d.infer(w, r, k, b); {
	case err == nil:
		d.succeeded.Add(1)
	case errors.Is(err, errClientLeft):
		d.cancelled.Add(1)
		hangUp()
	default:
		d.failed.Add(1)
		var api *apiError
		if errors.As(err, &api) {
			writeError(w, api)
		}
	}
}

// hangUp ends a request without an answer. Returning normally would send an empty
// 200, which a client dropped by Stop might still receive.
func hangUp() { panic(http.ErrAbortHandler) }

var (
	errClientLeft = errors.New("the client left before the answer")
	errBroken     = errors.New("a fault broke the answer")
)

// infer runs one request; the package comment shows the steps.
func (d *Device) infer(w http.ResponseWriter, r *http.Request, k kind, b *buffers) error {
	if err := d.authorize(r); err != nil {
		return err
	}
	if err := d.checkHeaders(r); err != nil {
		return err
	}
	// net/http only watches for the client to leave once the body has been read to
	// the end, so read it before anything that waits.
	if err := d.readBody(w, r, b); err != nil {
		return err
	}
	n := d.sequence.Add(1)
	fault := d.fault.Load()
	if fault != nil && !fault.hits(d.spec.Seed, n, r.URL.Path, b.body) {
		fault = nil
	}
	if fault != nil {
		d.hit.Add(1)
		if done, err := fault.before(w, r); done {
			return err
		}
	}
	q := &b.request
	if err := q.parse(k, b.body); err != nil {
		return err
	}
	dimensions, err := d.admit(q)
	if err != nil {
		return err
	}
	if err := d.work(r, q, n, fault); err != nil {
		return err
	}
	items := len(q.items)
	partial := fault != nil && fault.Kind == Partial && q.kind.batched() && items > 1
	if partial {
		items /= 2
	}
	b.answer = q.answer(b.answer[:0], items, time.Now().Unix(), dimensions)
	d.items.Add(int64(len(q.items)))
	if fault != nil && fault.after(w, r, b.answer) {
		return errBroken
	}
	if id := r.Header["X-Request-Id"]; len(id) > 0 {
		w.Header()["X-Request-Id"] = id[:1]
	}
	write(w, http.StatusOK, jsonType, b.answer)
	if partial {
		return errBroken
	}
	return nil
}

func (d *Device) authorize(r *http.Request) error {
	if d.spec.APIKey == "" || r.Header.Get("Authorization") == "Bearer "+d.spec.APIKey {
		return nil
	}
	return d.wrongKey()
}

// readBody reads the whole body, within the limits on bytes and time.
func (d *Device) readBody(w http.ResponseWriter, r *http.Request, b *buffers) error {
	most := d.limits().MaxBody
	tooLarge := &apiError{status: 413, kind: "invalid_request_error", message: "The body of your request is larger than " + strconv.FormatInt(most, 10) + " bytes."}
	if r.ContentLength > most {
		return tooLarge
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // cannot fail on TCP
	b.body = b.body[:0]
	for int64(len(b.body)) <= most {
		if len(b.body) == cap(b.body) {
			b.body = append(b.body, 0)[:len(b.body)]
		}
		n, err := r.Body.Read(b.body[len(b.body):cap(b.body)])
		b.body = b.body[:len(b.body)+n]
		if err == nil {
			continue
		}
		// Clear the deadline before the request waits: net/http keeps reading to
		// notice the client leaving.
		_ = control.SetReadDeadline(time.Time{})
		var netErr net.Error
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &netErr) && netErr.Timeout():
			return &apiError{status: 408, kind: "invalid_request_error", message: "The body of your request did not arrive in time."}
		}
		return errClientLeft
	}
	// net/http tries to read the rest for a moment before it closes the connection.
	_ = control.SetReadDeadline(time.Now().Add(time.Second))
	return tooLarge
}

// admit checks what depends on the device (model, vector size) and returns the
// vector size.
func (d *Device) admit(q *request) (dimensions int, err error) {
	if !d.anyModel && d.spec.Engine != LlamaCPP && q.model != nil {
		if name := string(unquote(q.model)); !d.models[name] {
			return 0, &apiError{status: 404, kind: "invalid_request_error", param: "model", code: "model_not_found", message: "The model '" + name + "' does not exist."}
		}
	}
	dimensions = q.dimensions
	if dimensions == 0 {
		dimensions = d.spec.Dimensions
	}
	limits := d.limits()
	if most := limits.MaxItems; most > 0 && len(q.items) > most {
		return 0, &apiError{status: 413, kind: "validation", message: fmt.Sprintf("batch size %d > maximum allowed batch size %d", len(q.items), most)}
	}
	if most := limits.Context; most > 0 {
		for _, it := range q.items {
			if it.tokens > most {
				return 0, &apiError{status: 400, kind: "exceed_context_size_error", message: fmt.Sprintf("request (%d tokens) exceeds the available context size (%d tokens), try increasing it", it.tokens, most)}
			}
		}
	}
	if q.kind == embeddings && dimensions*len(q.items) > maxVectorCells {
		return 0, invalid("dimensions", "The answer would be too long: inputs × dimensions must be at most %d.", maxVectorCells)
	}
	return dimensions, nil
}

// work holds a slot for the service time, and frees it in every case.
func (d *Device) work(r *http.Request, q *request, n uint64, fault *armed) error {
	if err := d.slots.acquire(r.Context()); err != nil {
		if errors.Is(err, errQueueFull) {
			return &apiError{status: 429, kind: "requests", code: "rate_limit_exceeded", message: "This device has too many requests waiting. Please try again later."}
		}
		return errClientLeft
	}
	defer d.slots.release()
	d.remember(r.Header)
	mean := d.serviceTime(q)
	if mean == 0 {
		return nil
	}
	factor := d.spec.factor(n)
	if fault != nil && fault.Kind == Slow {
		factor *= fault.Factor
	}
	return d.compute(r.Context(), time.Duration(float64(mean)*factor))
}

func (d *Device) serviceTime(q *request) time.Duration {
	mean := d.spec.ServiceTime
	if !q.kind.generates() && d.spec.EmbedTime > 0 {
		mean = d.spec.EmbedTime
	}
	if d.spec.PerPromptToken > 0 || d.spec.PerOutputToken > 0 {
		prompt, output := q.work()
		mean += time.Duration(prompt)*d.spec.PerPromptToken + time.Duration(output)*d.spec.PerOutputToken
	}
	return mean + time.Duration(len(q.items)-1)*d.spec.BatchItemTime
}

// remember counts the task keys of a request that got a slot: each value of the two
// headers, once if it is in both. Of an id that Batchyard gave to an attempt, that is the task.
func (d *Device) remember(h http.Header) {
	keys, ids := h["Idempotency-Key"], slices.Clone(h["X-Request-Id"])
	for i, id := range ids {
		ids[i] = attemptID.ReplaceAllString(id, "")
	}
	for _, key := range keys {
		d.seen.add(key)
	}
next:
	for _, id := range ids {
		for _, key := range keys {
			if id == key {
				continue next
			}
		}
		d.seen.add(id)
	}
}

// attemptID is what Batchyard appends to the id of a task for an attempt: its number and a random one.
var attemptID = regexp.MustCompile(`\.[0-9]+\.[0-9a-f]{8}$`)

// wait waits for t, or returns errClientLeft if the client leaves first.
func wait(ctx context.Context, t time.Duration) error {
	if t <= 0 {
		return nil
	}
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errClientLeft
	}
}

// before applies the faults that end a request before it gets a slot; done means
// that it did.
func (f *armed) before(w http.ResponseWriter, r *http.Request) (done bool, err error) {
	switch f.Kind {
	case Fail, RateLimit, Reply, Reset:
		if err := wait(r.Context(), f.After); err != nil {
			return true, err
		}
	}
	switch f.Kind {
	case Fail:
		return true, &apiError{status: f.Status, kind: "server_error", message: "The server had an error while processing your request."}
	case RateLimit:
		seconds := int64((f.RetryAfter + time.Second - 1) / time.Second)
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
		return true, &apiError{status: 429, kind: "requests", code: "rate_limit_exceeded", message: "Rate limit reached. Please try again later."}
	case Hang:
		<-r.Context().Done()
		return true, errClientLeft
	case Reset:
		reset(w)
		return true, errBroken
	case CloseKept:
		if requestsOn(r) > 1 {
			reset(w)
			return true, errBroken
		}
	case Reply:
		for k, v := range f.Header {
			w.Header().Set(k, v)
		}
		if f.Until > 0 {
			w.Header().Set("Retry-After", time.Now().Add(f.Until).UTC().Format(http.TimeFormat))
		}
		write(w, f.Status, jsonType, []byte(f.Body))
		return true, errBroken
	case Endless:
		w.Header()["Content-Type"] = jsonType
		for piece := []byte(strings.Repeat("0", 64<<10)); ; {
			if _, err := w.Write(piece); err != nil {
				return true, errClientLeft
			}
		}
	}
	return false, nil
}

// after applies the faults that spoil an answer, and reports whether it answered.
func (f *armed) after(w http.ResponseWriter, r *http.Request, answer []byte) bool {
	switch f.Kind {
	case Stall:
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(answer))}
		w.Header()["Content-Type"] = jsonType
		_, _ = w.Write(answer[:len(answer)/2]) // fails if the client has left: no matter
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	case BadJSON:
		write(w, http.StatusOK, jsonType, append(append([]byte(nil), answer[:len(answer)/2]...), "<html>"...))
		return true
	case Truncate:
		// net/http closes the connection if less is written than Content-Length says.
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(answer))}
		w.Header()["Content-Type"] = jsonType
		_, _ = w.Write(answer[:len(answer)/2]) // fails if the client has left: no matter
		return true
	}
	return false
}

// reset closes the connection so that the client sees a TCP reset.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not HTTP/1.1: just drop the connection
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // close with a reset instead of a FIN
	}
	_ = conn.Close()
}

// serveStatus answers /health, /metrics and /v1/models, which agents and routers
// poll.
func (d *Device) serveStatus(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, &apiError{status: 405, kind: "invalid_request_error", message: "Not allowed to " + r.Method + " on " + r.URL.Path})
		return
	}
	if fault := d.fault.Load(); fault != nil && fault.Everything && fault.hits(d.spec.Seed, d.sequence.Add(1), "", nil) {
		if done, err := fault.before(w, r); done {
			var api *apiError
			if errors.As(err, &api) {
				writeError(w, api)
			}
			if errors.Is(err, errClientLeft) {
				hangUp()
			}
			return
		}
		if fault.Kind == Slow && wait(r.Context(), time.Duration(float64(d.spec.ServiceTime)*fault.Factor)) != nil {
			hangUp()
		}
	}
	if d.engineStatus(w, r) {
		return
	}
	var b []byte
	switch r.URL.Path {
	case "/health":
		write(w, http.StatusOK, jsonType, []byte("{}"))
		return
	case "/metrics":
		write(w, http.StatusOK, []string{"text/plain; version=0.0.4; charset=utf-8"}, d.metrics(b))
		return
	}
	b = append(b, `{"object":"list","data":[`...)
	for i, m := range d.spec.Models {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"object":"model","created":0,"owned_by":"batchyard","id":`...)
		b = append(d.meta(appendQuoted(b, m)), '}')
	}
	write(w, http.StatusOK, jsonType, append(b, "]}"...))
}

// metrics appends the device's figures under the names that vLLM uses.
func (d *Device) metrics(b []byte) []byte {
	st := d.Stats()
	// Requests that hang are neither running nor in the queue: count them as waiting.
	waiting := max(st.Waiting, st.InFlight-st.Running)
	for _, m := range []struct {
		name, kind, help string
		value            float64
	}{
		{"vllm:num_requests_running", "gauge", "Number of requests currently running.", float64(st.Running)},
		{"vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", float64(waiting)},
		{"vllm:gpu_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", float64(st.Running) / float64(d.spec.Slots)},
		{"vllm:request_success_total", "counter", "Count of successfully processed requests.", float64(st.Succeeded)},
	} {
		b = append(b, "# HELP "+m.name+" "+m.help+"\n# TYPE "+m.name+" "+m.kind+"\n"+m.name+`{model_name=`...)
		b = strconv.AppendQuote(b, d.spec.Models[0])
		b = append(b, "} "...)
		b = strconv.AppendFloat(b, m.value, 'g', -1, 64)
		b = append(b, '\n')
	}
	return b
}

// jsonType is shared by all answers: nothing modifies header values.
var jsonType = []string{"application/json"}

func write(w http.ResponseWriter, status int, contentType []string, body []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // cannot fail on TCP
	h := w.Header()
	h["Content-Type"] = contentType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails if the client has left: no matter
}

func writeError(w http.ResponseWriter, e *apiError) {
	b := append([]byte(nil), `{"error":{"message":`...)
	b = appendQuoted(b, e.message)
	b = append(b, `,"type":`...)
	b = appendQuoted(b, e.kind)
	b = append(b, `,"param":`...)
	b = appendQuotedOrNull(b, e.param)
	b = append(b, `,"code":`...)
	b = appendQuotedOrNull(b, e.code)
	write(w, e.status, jsonType, append(b, "}}"...))
}

func appendQuotedOrNull(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendQuoted(b, s)
}

func appendQuoted(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...) // unreachable: every string marshals
	}
	return append(b, quoted...)
}
