package chaos

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

// receiver accepts callbacks at /hook/TENANT/ID, and sometimes fails to.
type receiver struct {
	server *httptest.Server
	verify *webhooks.Webhook

	mu    sync.Mutex
	r     *rand.Rand
	calm  bool // no longer fails
	fails map[task.Key]int
	got   []check.Delivery
}

func newReceiver(seed uint64) (*receiver, error) {
	wh, err := webhooks.NewWebhook(harness.Secret)
	if err != nil {
		return nil, fmt.Errorf("reading the callback secret: %w", err)
	}
	r := &receiver{verify: wh, fails: map[task.Key]int{}, r: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // must be reproducible
	r.server = httptest.NewServer(r)
	return r, nil
}

func (r *receiver) url(k task.Key) string { return r.server.URL + "/hook/" + k.Tenant + "/" + k.ID }

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err != nil {
		return // the sender is gone
	}
	tenant, id, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/hook/"), "/")
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

func (r *receiver) heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calm = true
}

func (r *receiver) deliveries() []check.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]check.Delivery(nil), r.got...)
}

func (r *receiver) close() {
	r.server.CloseClientConnections()
	r.server.Close()
}
