package harness

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
)

// Receiver receives callbacks, checks their signatures and counts them.
type Receiver struct {
	URL string

	server *httptest.Server
	secret string
	mu     sync.Mutex
	byTask map[string]map[string]int // task id → webhook-id → deliveries
	bodies map[string][]byte         // latest, by task id
	bad    []string                  // problems with deliveries
	answer func(taskID string, delivery int) int
}

// Hooks starts a receiver. If secret is not empty, deliveries must be signed with it.
// answer, which may be nil, chooses the status for the n-th delivery of a task,
// counting from 1.
func Hooks(t testing.TB, secret string, answer func(taskID string, delivery int) int) *Receiver {
	t.Helper()
	r := &Receiver{secret: secret, byTask: map[string]map[string]int{}, bodies: map[string][]byte{}, answer: answer}
	r.server = httptest.NewServer(http.HandlerFunc(r.take))
	r.URL = r.server.URL + "/hook"
	t.Cleanup(r.server.Close)
	return r
}

func (r *Receiver) take(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 16<<20))
	if err != nil {
		return // the sender is gone
	}
	var event struct {
		ID   string `json:"id"`
		Type string `json:"type"`
		Data struct {
			TaskID string `json:"task_id"`
			State  string `json:"state"`
		} `json:"data"`
	}
	problem := ""
	if err := json.Unmarshal(body, &event); err != nil {
		problem = fmt.Sprintf("the body is not valid JSON: %v", err)
	}
	id, taskID := req.Header.Get("webhook-id"), event.Data.TaskID
	switch {
	case problem != "":
	case id == "" || taskID == "" || event.Data.State == "":
		problem = fmt.Sprintf("missing webhook-id, task id or state: %q %s", id, body)
	case r.secret != "":
		problem = r.verify(body, req.Header)
	}
	r.mu.Lock()
	if problem != "" {
		r.bad = append(r.bad, problem)
	}
	ids := r.byTask[taskID]
	if ids == nil {
		ids = map[string]int{}
		r.byTask[taskID] = ids
	}
	ids[id]++
	r.bodies[taskID] = body
	n := 0
	for _, c := range ids {
		n += c
	}
	r.mu.Unlock()
	status := http.StatusNoContent
	if r.answer != nil {
		status = r.answer(taskID, n)
	}
	w.WriteHeader(status)
}

// verify checks a signature twice: with the library that users would use, and by
// following the specification.
func (r *Receiver) verify(body []byte, h http.Header) string {
	wh, err := webhooks.NewWebhook(r.secret)
	if err != nil {
		return err.Error()
	}
	if err := wh.Verify(body, h); err != nil {
		return fmt.Sprintf("signature: %v (%v)", err, h)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.secret, "whsec_"))
	if err != nil {
		return err.Error()
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", h.Get("webhook-id"), h.Get("webhook-timestamp"), body) // never fails
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for sig := range strings.FieldsSeq(h.Get("webhook-signature")) {
		if hmac.Equal([]byte(sig), []byte(want)) {
			return ""
		}
	}
	return fmt.Sprintf("signature: none of %q is %q", h.Get("webhook-signature"), want)
}

// Count returns the number of tasks with at least one delivery.
func (r *Receiver) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byTask)
}

// Deliveries returns the number of deliveries for a task, by webhook-id.
func (r *Receiver) Deliveries(taskID string) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.byTask[taskID])
}

// Body returns the body of the latest delivery for a task.
func (r *Receiver) Body(taskID string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bodies[taskID]
}

// Check fails the test if there was a problem with any delivery.
func (r *Receiver) Check(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.bad)
}
