package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/task"
)

// API is a plain client of the HTTP API.
type API struct {
	Base   string
	Tenant string // sent if not empty
	client *http.Client
}

// API returns a client for the process, which must run the api stage.
func (p *Process) API() *API { return NewAPI(p.URL()) }

// NewAPI returns a client for the API at a base URL.
func NewAPI(base string) *API {
	return &API{Base: base, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
}

// Answer is a response of the API.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Into decodes the JSON body.
func (a Answer) Into(t testing.TB, v any) {
	t.Helper()
	require.NoErrorf(t, json.Unmarshal(a.Body, v), "%s", a.Body)
}

// Try sends a request. A string or []byte body is sent as is, anything else as JSON.
func (a *API) Try(ctx context.Context, method, path string, body any) (Answer, error) {
	var raw []byte
	switch b := body.(type) {
	case nil:
	case string:
		raw = []byte(b)
	case []byte:
		raw = b
	default:
		var err error
		if raw, err = json.Marshal(b); err != nil {
			return Answer{}, fmt.Errorf("encoding the request: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.Base+path, bytes.NewReader(raw))
	if err != nil {
		return Answer{}, fmt.Errorf("creating the request: %w", err)
	}
	if raw != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.Tenant != "" {
		req.Header.Set("X-Batchyard-Tenant", a.Tenant)
	}
	req.Header.Set("User-Agent", "end-to-end/1")
	resp, err := a.client.Do(req)
	if err != nil {
		return Answer{}, fmt.Errorf("calling the API: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // read to the end
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return Answer{}, fmt.Errorf("reading the API's answer: %w", err)
	}
	return Answer{resp.StatusCode, resp.Header, text}, nil
}

// Do sends a request and fails the test if there is no answer.
func (a *API) Do(t testing.TB, method, path string, body any) Answer {
	t.Helper()
	answer, err := a.Try(t.Context(), method, path, body)
	require.NoError(t, err)
	return answer
}

// Get requests a path, which must answer 200, and decodes the body.
func (a *API) Get(t testing.TB, path string, into any) {
	t.Helper()
	answer := a.Do(t, http.MethodGet, path, nil)
	require.Equalf(t, http.StatusOK, answer.Status, "GET %s: %s", path, answer.Body)
	answer.Into(t, into)
}

// Status returns the status of a task.
func (a *API) Status(t testing.TB, id string) api.Status {
	t.Helper()
	var s api.Status
	a.Get(t, "/v1/tasks/"+id, &s)
	return s
}

// Submit submits tasks and returns their ids once they are durable.
func (a *API) Submit(t testing.TB, tasks ...*task.Task) []string {
	t.Helper()
	answer := a.Do(t, http.MethodPost, "/v1/tasks", tasks)
	require.Equalf(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
	return accepted(t, answer)
}

// SubmitAgain is Submit with retries while the API is down or busy. Since the tasks
// have ids, any client may do this.
func (a *API) SubmitAgain(t testing.TB, tasks ...*task.Task) []string {
	t.Helper()
	var answer Answer
	Eventually(t, 2*Patience, "the tasks are accepted", func() bool {
		var err error
		answer, err = a.Try(t.Context(), http.MethodPost, "/v1/tasks", tasks)
		if err == nil && answer.Status != http.StatusAccepted && answer.Status < 500 && answer.Status != http.StatusTooManyRequests {
			t.Fatalf("submitting: %d %s", answer.Status, answer.Body)
		}
		return err == nil && answer.Status == http.StatusAccepted
	})
	return accepted(t, answer)
}

func accepted(t testing.TB, answer Answer) []string {
	t.Helper()
	var list api.AcceptedList
	answer.Into(t, &list)
	ids := make([]string, 0, len(list.Tasks))
	for _, one := range list.Tasks {
		require.NotEmpty(t, one.State)
		ids = append(ids, one.ID)
	}
	return ids
}

// Chat returns a chat task. Its prompt contains the id, so that answers differ.
func Chat(id string) *task.Task {
	return &task.Task{ID: id, Model: "m", Endpoint: task.EndpointChat,
		Input: task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":%q}]}`, "say "+id))}
}

// Embedding returns an embedding task.
func Embedding(id string) *task.Task {
	return &task.Task{ID: id, Model: "m", Endpoint: task.EndpointEmbeddings, Input: task.Input(fmt.Sprintf(`{"input":%q}`, "embed "+id))}
}

// Chats returns n chat tasks with the ids prefix-0000, prefix-0001, …, and these ids.
func Chats(prefix string, n int) (tasks []*task.Task, ids []string) {
	for i := range n {
		id := fmt.Sprintf("%s-%04d", prefix, i)
		tasks, ids = append(tasks, Chat(id)), append(ids, id)
	}
	return tasks, ids
}

// Await waits until all tasks have ended according to Postgres.
func (in *Installation) Await(t testing.TB, ids []string, within time.Duration) {
	t.Helper()
	left := -1
	if !await(t.Context(), within, func() bool {
		// Postgres may be down for a while: some tests are about that.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var done int
		// Only compare ids once enough tasks have ended: this runs often.
		const terminal = ` FROM tasks WHERE state IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED')`
		err := in.Pool(t).QueryRow(ctx, "SELECT count(*)"+terminal).Scan(&done)
		if err == nil && done >= len(ids) {
			err = in.Pool(t).QueryRow(ctx, "SELECT count(*)"+terminal+" AND task_id = ANY($1)", ids).Scan(&done)
		}
		if err == nil {
			left = len(ids) - done
		}
		return left == 0
	}) {
		t.Fatalf("after %s, %d of %d tasks have not ended: %v", within, left, len(ids), in.unfinished(t, ids))
	}
}

// unfinished describes some of the tasks that have not ended.
func (in *Installation) unfinished(t testing.TB, ids []string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
	defer cancel()
	rows, err := in.Pool(t).Query(ctx, `SELECT i || ' ' || coalesce(state, 'unknown') || ' attempt ' || coalesce(attempt, -1) || ' ' ||
		coalesce((SELECT string_agg(action || coalesce(' ' || nullif(error_class, ''), ''), ', ' ORDER BY time) FROM audit_log a WHERE a.task_id = i), '')
		FROM unnest($1::text[]) i LEFT JOIN tasks ON task_id = i
		WHERE state IS NULL OR state NOT IN ('SUCCESS', 'FAILED', 'CANCELLED', 'EXPIRED') LIMIT 5`, ids)
	if err != nil {
		return []string{err.Error()}
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if rows.Scan(&s) == nil {
			out = append(out, s)
		}
	}
	if err := rows.Err(); err != nil {
		out = append(out, err.Error())
	}
	return out
}
