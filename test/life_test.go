package test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/harness"
)

var update = flag.Bool("update", os.Getenv("UPDATE") == "1", "write the life of a task to ARCHITECTURE.md instead of comparing it")

// lifeDoc is the page that shows the life of a task, between the two marks.
const (
	lifeDoc   = "../ARCHITECTURE.md"
	lifeBegin = "<!-- life:begin -->\n```text\n"
	lifeEnd   = "```\n<!-- life:end -->"
)

// TestTheLifeOfATask follows one task through everything that it leaves behind, and compares
// that with what ARCHITECTURE.md shows. With -update it writes the page.
func TestTheLifeOfATask(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f, err := fleet.Start(t.Context(), []fleet.Spec{{ID: "gpu-1", Slots: 2}})
	require.NoError(t, err)
	t.Cleanup(f.Close)
	engine := watch(t, f.Devices()[0].URL())
	hooks := harness.Hooks(t, harness.Secret, nil)
	receiver := watch(t, hooks.URL)
	in.Device(t, device.Device{ID: "gpu-1", URL: engine.URL, Models: []string{"llama"}, Slots: 2})
	server := in.Process(t, "serve")

	const id = "hello"
	body := `{"task_id":"hello","model":"llama","input":{"messages":[{"role":"user","content":"Say hello."}]},"callback":{"url":"` + receiver.URL + `/hook"}}`
	answer := server.API().Do(t, http.MethodPost, "/v1/tasks", body)
	require.Equalf(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
	in.Await(t, []string{id}, harness.Patience)
	in.CheckPromises(t, []string{id}, hooks)
	harness.Eventually(t, harness.Patience, "the delivery is in the audit log", func() bool {
		return harness.SQL[bool](t, in, `SELECT EXISTS (SELECT FROM audit_log WHERE task_id = $1 AND action = $2)`, id, task.CallbackSent)
	})

	l := life{in: in, id: id}
	l.step("client → api", "POST /v1/tasks")
	l.say("%s", body)
	l.say("The answer is sent once step 2 and the event task.accepted are on all in-sync replicas:")
	l.say("%d %s", answer.Status, answer.Body)
	l.queued(t)
	l.assigned(t)
	l.batched(t)
	l.step("workers → device gpu-1", engine.only(t))
	l.resulted(t)
	l.events(t)
	l.recorded(t)
	l.step("callbacks → the user's endpoint", receiver.only(t))
	l.say("Signed as Standard Webhooks specifies. Every retry has the same webhook-id and the same body.")
	l.delivered(t)
	l.compare(t)
}

// life is the text about one task, as it grows.
type life struct {
	in   *harness.Installation
	id   string
	n    int // steps so far
	text strings.Builder

	actions []string // of its events, in the order of its life
}

// step starts a numbered step: who wrote, where to, and details, one per line.
func (l *life) step(who, what string) {
	l.n++
	where, more, _ := strings.Cut(what, "\n")
	if l.n > 1 {
		l.text.WriteString("\n")
	}
	fmt.Fprintf(&l.text, "%2d  %s: %s\n", l.n, who, plain(where))
	for line := range strings.Lines(more) {
		l.say("%s", strings.TrimSuffix(line, "\n"))
	}
}

// width is how long a line may be; a longer one continues below, indented.
const width = 116

// say adds a line to the current step.
func (l *life) say(format string, args ...any) {
	line := strings.TrimSpace(plain(fmt.Sprintf(format, args...)))
	indent := "    "
	for len(line) > width {
		cut := strings.LastIndexAny(line[:width], ", ") + 1
		if cut == 0 {
			break
		}
		l.text.WriteString(indent + strings.TrimRight(line[:cut], " ") + "\n")
		line, indent = line[cut:], "      "
	}
	l.text.WriteString(indent + line + "\n")
}

// record starts the step about the only record of a topic, and returns the record.
func (l *life) record(t *testing.T, who, topic string) *kgo.Record {
	t.Helper()
	records := l.in.All(t, topic)
	require.Lenf(t, records, 1, "%s: one task writes one record", topic)
	r := records[0]
	what := fmt.Sprintf("topic %s/%d@%d, key %s", topic, r.Partition, r.Offset, r.Key)
	names := make([]string, 0, len(r.Headers))
	for _, h := range r.Headers {
		names = append(names, h.Key+"="+string(h.Value))
	}
	if len(names) > 0 {
		what += "\nHeaders: " + strings.Join(names, ", ")
	}
	l.step(who, what)
	return r
}

func (l *life) queued(t *testing.T) {
	t.Helper()
	r := l.record(t, "api", stream.TasksNormal)
	tk, err := wire.DecodeTask(r.Value, harness.Header(r, wire.HeaderContentType))
	require.NoError(t, err)
	l.say("The task in MessagePack, with what the client left out filled in:")
	l.say("%s", asJSON(t, tk))
}

func (l *life) assigned(t *testing.T) {
	t.Helper()
	r := l.record(t, "router", stream.Assignments)
	frame, err := wire.DecodeFrame[task.Assignment](wire.FrameAssignments, r.Value)
	require.NoError(t, err)
	require.Len(t, frame, 1)
	a := frame[0]
	require.Equal(t, l.id, a.Task.ID)
	require.NotEmpty(t, a.Lease.ID)
	l.say("A frame of %d assignment: task %s, device %s at %s, attempt %d,", len(frame), a.Task.ID, a.Device.ID, a.Device.URL, a.Attempt)
	l.say("with a credit of pool %s under lease <lease>. %d of %d slots were idle.", a.Lease.Pool, a.IdleSlots, a.Device.Slots)
}

func (l *life) batched(t *testing.T) {
	t.Helper()
	r := l.record(t, "batcher", stream.Batches)
	frame, err := wire.DecodeFrame[task.Batch](wire.FrameBatches, r.Value)
	require.NoError(t, err)
	require.Len(t, frame, 1)
	b := frame[0]
	require.Len(t, b.Assignments, 1)
	require.Equal(t, l.id, b.Assignments[0].Task.ID)
	l.say("A frame of %d batch: %s, device %s, endpoint %s, model %s,", len(frame), b.ID, b.Device.ID, b.Endpoint, b.Model)
	l.say("with %d assignment: task %s, attempt %d. Reason for closing it: %s.", len(b.Assignments), b.Assignments[0].Task.ID, b.Assignments[0].Attempt, b.Reason)
}

func (l *life) resulted(t *testing.T) {
	t.Helper()
	r := l.record(t, "workers", stream.Results)
	require.True(t, json.Valid(r.Value))
	l.say("%s", r.Value)
}

// events shows the events of the task in the order of its life. Which of them share a frame
// depends on timing, as does their order in the topic.
func (l *life) events(t *testing.T) {
	t.Helper()
	var events []task.Event
	keys := map[string]bool{}
	for _, r := range l.in.All(t, stream.Events) {
		frame, err := wire.DecodeFrame[task.Event](wire.FrameEvents, r.Value)
		require.NoError(t, err)
		for i := range frame {
			if frame[i].TaskID == l.id {
				events, keys[fmt.Sprintf("topic %s/%d, key %s", stream.Events, r.Partition, r.Key)] = append(events, frame[i]), true
			}
		}
	}
	require.Len(t, keys, 1, "all events of a task are in one partition")
	place := func(a task.Action) int {
		return slices.IndexFunc(task.Actions, func(i task.ActionInfo) bool { return i.Action == a })
	}
	slices.SortStableFunc(events, func(a, b task.Event) int { return place(a.Action) - place(b.Action) })
	for key := range keys {
		l.step("every stage", key)
	}
	l.say("A stage writes an event for each action, together with what the action wrote:")
	for i := range events {
		e := &events[i]
		actor, _, _ := strings.Cut(e.ActorID, "@")
		line := fmt.Sprintf("%-18s  by %s %s", e.Action, e.ActorType, actor)
		if e.DeviceID != "" {
			line += fmt.Sprintf(", device %s, attempt %d", e.DeviceID, e.Attempt)
		}
		if len(e.Detail) > 0 {
			line += ", detail " + string(e.Detail)
		}
		l.say("%s", line)
		l.actions = append(l.actions, string(e.Action))
	}
}

// recorded shows the rows that the recorder wrote.
func (l *life) recorded(t *testing.T) {
	t.Helper()
	type row struct{ Text string }
	rows := func(sql string) []string {
		var out []string
		for _, r := range harness.Rows[row](t, l.in, sql, l.id) {
			out = append(out, r.Text)
		}
		return out
	}
	one := func(sql string) string {
		found := rows(sql)
		require.Lenf(t, found, 1, "%s", sql)
		return found[0]
	}
	l.step("audit", "table audit_log, one row for each event from step 7, in the same transaction as the offset it was read at")
	require.ElementsMatch(t, l.actions, rows(`SELECT action AS text FROM audit_log WHERE task_id = $1`), "one row for each event")
	l.say("%d rows. The one for attempt.succeeded, in part:", len(l.actions))
	l.say("%s", one(`SELECT json_strip_nulls(row_to_json(a))::text AS text FROM (SELECT time, actor_id, action, outcome, task_id, device_id, attempt,
		duration_ms, output_tokens, output_sha256, src_topic, src_partition, src_offset, src_index, chain_seq, prev_hash, row_hash
		FROM audit_log WHERE task_id = $1 AND action = 'attempt.succeeded') a`))
	l.say("The src_ columns name the record of the event. The hashes chain the rows of one partition.")
	l.step("audit", "table tasks, the task's state row")
	l.say("%s", one(`SELECT json_strip_nulls(row_to_json(x))::text AS text FROM (SELECT tenant, task_id, state, seq, attempt, device_id, model, endpoint, priority,
		trace_id, submitted_at, assigned_at, started_at, finished_at, callback_url FROM tasks WHERE task_id = $1) x`))
	l.say("Events may arrive in any order: only one with a higher seq changes the state. Terminal states have the highest.")
	l.step("audit", "table results, which keeps the first result of each generation of a task")
	l.say("%s", one(`SELECT json_strip_nulls(row_to_json(x))::text AS text FROM (SELECT tenant, task_id, state, status, output, attempt, input_tokens, output_tokens,
		device_id, finished_at, recorded_at FROM results WHERE task_id = $1) x`))
	l.step("audit", "table callbacks, in the same transaction as step 10")
	l.say("%s", one(`SELECT row_to_json(x)::text AS text FROM (SELECT callback_id, tenant, task_id, url, created_at FROM callbacks WHERE task_id = $1) x`))
	l.say("Its state is DUE until the delivery succeeds or the retries are used up.")
}

// delivered shows what remains of a callback after its delivery.
func (l *life) delivered(t *testing.T) {
	t.Helper()
	l.step("callbacks", "table callbacks, after the 2xx")
	l.say("%s", harness.SQL[string](t, l.in, `SELECT row_to_json(x)::text FROM (SELECT callback_id, task_id, state, attempts, last_status, delivered_at
		FROM callbacks WHERE task_id = $1) x`, l.id))
	l.say("Then the event callback.delivered becomes the last audit row of the task.")
}

// compare compares the text with the page, or writes the page.
func (l *life) compare(t *testing.T) {
	t.Helper()
	text := l.text.String()
	t.Log("\n" + text)
	raw, err := os.ReadFile(lifeDoc)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(raw), lifeBegin)
	require.True(t, ok, "ARCHITECTURE.md has no %q", lifeBegin)
	old, after, ok := strings.Cut(rest, lifeEnd)
	require.True(t, ok, "ARCHITECTURE.md has no %q after it", lifeEnd)
	if !*update {
		require.Equal(t, old, text, "ARCHITECTURE.md shows something else: if the change is meant, run this test with -update")
		return
	}
	require.NoError(t, os.WriteFile(lifeDoc, []byte(before+lifeBegin+text+lifeEnd+after), 0o644)) //nolint:gosec // a page of the repository
}

// varying is what differs between runs, and what the page shows instead.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)`), "<time>"},
	{regexp.MustCompile(`("created(_at)?": ?)\d+`), "$1<time>"},
	{regexp.MustCompile(`(webhook-timestamp: )\d+`), "$1<time>"},
	{regexp.MustCompile(`(webhook-signature: v1,)\S+`), "$1<signature>"},
	{regexp.MustCompile(`(batchyard-signature=v1,)[\w+/=]+`), "$1<signature>"},
	{regexp.MustCompile(`("duration_ms": ?)[0-9.e-]+`), "$1<ms>"},
	{regexp.MustCompile(`("score": ?)[0-9.e-]+`), "$1<ms>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`(X-Request-Id: [^.,\s]+\.\d+\.)\w+`), "$1<random>"},
	{regexp.MustCompile(`("digests": ?")[\w+/=]+`), "$1<digests>"},
	{regexp.MustCompile(`evt_[0-9a-f]+`), "<callback id>"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<batch id>"},
	{regexp.MustCompile(`\\\\x[0-9a-f]{64}\b`), "<hash>"},
	{regexp.MustCompile(`00-[0-9a-f]{32}-[0-9a-f]{16}-01`), "00-<trace id>-<span id>-01"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "<trace id>"},
	{regexp.MustCompile(`chatcmpl-[0-9a-f]+`), "chatcmpl-<id>"},
	{regexp.MustCompile(`@[\w.-]+-\d+\b`), "@<process>"},
	{regexp.MustCompile(`("(src_offset|src_index|chain_seq)": ?)\d+`), "$1<n>"},
	{regexp.MustCompile(`("content":")([^"]{20})[^"]*`), "$1$2…"},
}

// plain replaces what differs between runs, and shortens long answers.
func plain(s string) string {
	for _, v := range varying {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	return s
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

// watcher is a proxy that remembers the POST requests it forwards.
type watcher struct {
	URL  string
	mu   sync.Mutex
	seen []string
}

// shown are the headers that a watcher shows, in this order.
var shown = []string{"Content-Type", "X-Request-Id", "Traceparent", "webhook-id", "webhook-timestamp", "webhook-signature"}

// watch starts a proxy in front of the server that a URL names.
func watch(t *testing.T, target string) *watcher {
	t.Helper()
	u, err := url.Parse(target)
	require.NoError(t, err)
	u.Path = ""
	forward := httputil.NewSingleHostReverseProxy(u)
	w := &watcher{}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender is gone
		}
		if r.Method == http.MethodPost {
			var headers []string
			for _, name := range shown {
				if v := r.Header.Get(name); v != "" {
					headers = append(headers, name+": "+v)
				}
			}
			w.mu.Lock()
			w.seen = append(w.seen, fmt.Sprintf("POST %s\nHeaders: %s\n%s", r.URL.Path, strings.Join(headers, ", "), body))
			w.mu.Unlock()
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		forward.ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	w.URL = server.URL
	return w
}

// only returns the only POST request, which the test expects to be over.
func (w *watcher) only(t *testing.T) string {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Len(t, w.seen, 1)
	return w.seen[0]
}
