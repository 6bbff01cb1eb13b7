package test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/harness"
)

// forgeries returns well-formed records for the topics that only stages may write: an assignment
// and a batch for a device that is the attacker's, an answer to another's task, an event that
// never happened, and a parked task.
func forgeries(t *testing.T, url, answered string) []stream.Message {
	t.Helper()
	tk := task.Task{ID: "forged", Model: "m", Input: task.Input(`{"messages":[{"role":"user","content":"x"}]}`)}
	tk.Normalize(time.Now())
	a := task.Assignment{Task: tk, Device: task.DeviceRef{ID: "evil", URL: url, Slots: 1}, Attempt: 1, AssignedAt: time.Now()}
	assignments, err := wire.EncodeFrame(wire.FrameAssignments, []task.Assignment{a})
	require.NoError(t, err)
	batches, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{{ID: task.NewID(), Device: a.Device, Endpoint: tk.Endpoint, Model: "m", Assignments: []task.Assignment{a}}})
	require.NoError(t, err)
	events, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{task.NewEvent(task.TaskQueued, &tk, "root@corp", time.Now())})
	require.NoError(t, err)
	result, err := records.ResultMessage(&task.Result{
		TaskID: answered, Tenant: task.DefaultTenant, State: task.Success, Model: "m", Endpoint: tk.Endpoint, Status: 200,
		Output: []byte(`{"forged":true}`), SubmittedAt: time.Now(), FinishedAt: time.Now(),
	})
	require.NoError(t, err)
	parked, err := records.TaskMessage(stream.TasksParked, &tk)
	require.NoError(t, err)
	return []stream.Message{
		{Topic: stream.Assignments, Key: "evil", Value: assignments}, {Topic: stream.Batches, Key: "evil", Value: batches},
		{Topic: stream.Events, Key: "0", Value: events}, result, parked,
	}
}

// A client that may write to the topics, but has not the stages' key, can neither answer a task, nor make
// a worker send a request, nor add audit rows: what is not ours becomes a dead letter. Replaying the
// dead letter does not make it ours.
func TestForgedRecordsAreRefused(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer evil.Close()
	key := strings.Repeat("k", 32)
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"kafka.signing_keys": []string{key}})
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 4, ServiceTime: time.Millisecond})
	in.Process(t, "serve", "router", "batcher", "workers", "audit")

	forged := forgeries(t, evil.URL, "asked")
	unsigned := make([]*kgo.Record, 0, len(forged))
	for _, m := range forged {
		unsigned = append(unsigned, harness.Record(m.Topic, m.Key, m.Value))
	}
	in.Produce(t, unsigned...) // before the task whose answer is forged
	stranger, err := stream.Open(t.Context(), stream.Config{Brokers: in.Services.Brokers, TopicPrefix: in.TopicPrefix}, slog.New(slog.DiscardHandler), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, stranger.Close()) }()
	require.NoError(t, stranger.Produce(t.Context(), forged...)) // signed with the built-in key

	topics := map[string]int{}
	letters := in.Consume(t, stream.DLQ).Until(t, "all forged records are dead letters", func(all []*kgo.Record) bool { return len(all) >= 2*len(forged) })
	for _, l := range letters {
		require.Equal(t, records.ReasonNotOurs, harness.Header(l, records.HeaderDLQReason), harness.Header(l, records.HeaderDLQError))
		require.Contains(t, harness.Header(l, records.HeaderDLQError), stream.HeaderSignature)
		topics[harness.Header(l, records.HeaderDLQTopic)]++
	}
	require.Equal(t, map[string]int{stream.Assignments: 2, stream.Batches: 2, stream.Events: 2, stream.Results: 2, stream.TasksParked: 2}, topics)

	in.Produce(t, harness.Record(stream.TasksNormal, "", jsonTask("asked")))
	in.Await(t, []string{"asked"}, harness.Patience)
	replayed := in.Run(t, "dlq", "replay", "--reason", records.ReasonNotOurs)
	require.Zero(t, replayed.Code, replayed.Stderr)
	in.Consume(t, stream.DLQ).Until(t, "what was replayed is refused again", func(all []*kgo.Record) bool { return len(all) == 4*len(forged) })
	in.Await(t, []string{"asked"}, harness.Patience)
	in.AwaitRecorded(t)

	account := in.Run(t, "ledger", "check")
	require.Zerof(t, account.Code, "%s%s", account.Stdout, account.Stderr)

	require.Zero(t, reached.Load(), "no request reaches the device of a forged record")
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE task_id = 'forged'"))
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE output::text LIKE '%forged%'"))
	require.Equal(t, 1, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE task_id = 'asked' AND device_id = 'a'"))
	require.Equal(t, 4*len(forged), harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'record.dead_lettered' AND detail->>'reason' = 'not_ours'"))
}
