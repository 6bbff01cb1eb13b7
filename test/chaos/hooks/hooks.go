// Package hooks is the receiver of the callbacks of a run, which fails like those of real users.
package hooks

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/check"
	"github.com/batchyard/batchyard/test/harness"
)

// Receiver accepts callbacks at /hook/TENANT/ID, and sometimes fails to.
type Receiver struct {
	server *httptest.Server
	silent []*httptest.Server // they read requests, and answer none until Answer
	answer chan struct{}      // closed by Answer
	verify *webhooks.Webhook

	mu    sync.Mutex
	r     *rand.Rand
	calm  bool // no longer fails
	fails map[task.Key]int
	got   []check.Delivery
}

// New returns a receiver that fails as the seed says, with the given number of further hosts that do not answer.
func New(seed uint64, silent int) (*Receiver, error) {
	wh, err := webhooks.NewWebhook(harness.Secret)
	if err != nil {
		return nil, fmt.Errorf("reading the callback secret: %w", err)
	}
	r := &Receiver{answer: make(chan struct{}), verify: wh, fails: map[task.Key]int{}, r: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // must be reproducible
	r.server = httptest.NewServer(r)
	for range silent {
		r.silent = append(r.silent, httptest.NewServer(http.HandlerFunc(r.serveSilent)))
	}
	return r, nil
}

// URL returns where the callback of a task goes.
func (r *Receiver) URL(k task.Key) string { return r.server.URL + path + k.Tenant + "/" + k.ID }

// SilentURL returns where the n-th callback goes that is not answered before Answer.
func (r *Receiver) SilentURL(n int, k task.Key) string {
	return r.silent[n%len(r.silent)].URL + path + k.Tenant + "/" + k.ID
}

const path = "/hook/"

func (r *Receiver) serveSilent(w http.ResponseWriter, req *http.Request) {
	select {
	case <-r.answer:
		r.ServeHTTP(w, req)
	default:
		_, _ = io.Copy(io.Discard, io.LimitReader(req.Body, 16<<20)) // only then is the end of the connection seen
		<-req.Context().Done()
	}
}

// Answer lets the silent hosts answer.
func (r *Receiver) Answer() { close(r.answer) }

// ServeHTTP takes a callback.

func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err != nil {
		return // the sender is gone
	}
	tenant, id, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, path), "/")
	d := check.Delivery{ID: req.Header.Get("webhook-id"), Run: task.Run{Key: task.Key{Tenant: tenant, ID: id}}, Status: http.StatusNoContent}
	var event struct {
		Data struct {
			TaskID string     `json:"task_id"`
			State  task.State `json:"state"`
			Gen    int        `json:"generation"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		d.Problem = fmt.Sprintf("the body is not valid JSON: %v", err)
	} else if event.Data.TaskID != id {
		d.Problem = fmt.Sprintf("the body is about task %q", event.Data.TaskID)
	} else if err := r.verify.Verify(body, req.Header); err != nil {
		d.Problem = fmt.Sprintf("invalid signature: %v", err)
	}
	d.State, d.Run.Generation = event.Data.State, event.Data.Gen
	hang := false
	r.mu.Lock()
	if !r.calm && r.fails[d.Run.Key] < 3 {
		switch x := r.r.IntN(100); {
		case x < 8:
			d.Status = http.StatusInternalServerError
		case x < 11:
			d.Status = http.StatusTooManyRequests
		case x < 13:
			// Received, but the sender never gets an answer.
			d.Status, hang = 0, true
		}
		if d.Status/100 != 2 {
			r.fails[d.Run.Key]++
		}
	}
	r.got = append(r.got, d)
	r.mu.Unlock()
	if hang {
		select {
		case <-req.Context().Done():
		case <-time.After(10 * time.Second):
		}
		panic(http.ErrAbortHandler)
	}
	if d.Status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(d.Status)
}

// Heal ends the failures, but not the silence.
func (r *Receiver) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm = true
}

// Deliveries returns what arrived.
func (r *Receiver) Deliveries() []check.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]check.Delivery(nil), r.got...)
}

// Disconnect closes the connections that senders keep open.
func (r *Receiver) Disconnect() {
	for _, s := range append(r.silent, r.server) {
		s.CloseClientConnections()
	}
}

// Close ends the receiver.
func (r *Receiver) Close() {
	r.Disconnect()
	for _, s := range append(r.silent, r.server) {
		s.Close()
	}
}
