package test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// What a client may not say becomes a dead letter that names the field; what it merely claims is
// ignored, and the audit log says so.
func TestWhatClientsSayOverKafka(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 4, ServiceTime: time.Millisecond})
	in.Process(t, "serve", "router", "batcher", "workers", "audit")
	in.KeepClientTimes(t, stream.TasksNormal)

	body := func(members string) []byte {
		return []byte(`{"model":"m","input":{"messages":[{"role":"user","content":"x"}]},` + members + `}`)
	}
	bads := []bad{
		{"progress", harness.Record(stream.TasksNormal, "", body(`"task_id":"p","progress":{"requeues":0,"attempts":[{"number":1000000,"device_id":"x","at":"2026-01-01T00:00:00Z","duration_ms":1}]}`)), "progress: it is internal state"},
		{"other letters", harness.Record(stream.TasksNormal, "", body(`"tenant":"a","Tenant":"b"`)), "did you mean `tenant`?"},
		{"twice", harness.Record(stream.TasksNormal, "", body(`"tenant":"a","tenant":"b"`)), "tenant: it is there twice"},
		{"twice in MessagePack", harness.Record(stream.TasksNormal, "", []byte("\x82\xa6tenant\xa1a\xa6tenant\xa1b")), "tenant: it is there twice"},
		{"wrong type in MessagePack", harness.Record(stream.TasksNormal, "", []byte("\x81\xa5model\x93\x01\x02\x03")), "model: an array does not fit"},
		{"low in high", harness.Record(stream.TasksHigh, "", body(`"priority":"low"`)), "priority: it is low, but the record is in the topic tasks.high; send the task to tasks.low"},
		{"urgent", harness.Record(stream.TasksLow, "", body(`"priority":"urgent"`)), "priority: the record is in the topic tasks.low, and its priority is unknown"},
		{"itself", harness.Record(stream.TasksNormal, "", body(`"task_id":"self","depends_on":["self"]`)), "depends_on: dependencies are not supported yet"},
		{"half a pair", harness.Record(stream.TasksNormal, "", body(`"task_id":"x\ud800"`)), "task_id: it contains half of a surrogate pair"},
		{"the other half", harness.Record(stream.TasksNormal, "", body(`"task_id":"x\udfff"`)), "task_id: it contains half of a surrogate pair"},
		{"no trace", harness.Record(stream.TasksNormal, "", body(`"trace_id":"`+strings.Repeat("0", 32)+`"`)), "trace_id: it is not a W3C trace id"},
		{"UTF-16", harness.Record(stream.TasksNormal, "", []byte("\xff\xfe{\x00}\x00")), "it is UTF-16; send it as UTF-8"},
		{"Avro", harness.Record(stream.TasksNormal, "", []byte("\x00\x00\x00\x00\x0c\x02\x06abc")), "Confluent"},
	}
	good := []*kgo.Record{
		harness.Record(stream.TasksNormal, "user-7", jsonTask("claims"), "origin-accepted", "1", "origin-actor", "root@corp", "origin-addr", "203.0.113.9:1", "origin-agent", "curl/8", "dlq-reason", "mine", "batchyard-x", "y",
			"correlation-id", "c-1", "traceparent", "00-"+strings.Repeat("0", 32)+"-b7ad6b7169203331-01"),
		harness.Record(stream.TasksNormal, "", []byte("\xef\xbb\xbf"+string(jsonTask("bom")))),
		harness.Record(stream.TasksNormal, "", []byte("\x00\x00\x00\x00\x0c"+string(jsonTask("confluent"))), "content-type", "application/octet-stream"),
		harness.Record(stream.TasksNormal, "quoted", jsonTask("quoted"), "content-type", `"application/json;charset=utf-8"`),
		harness.Record(stream.TasksNormal, "", msgpackTask(t, "octets"), "content-type", "Application/Octet-Stream"),
		harness.Record(stream.TasksNormal, "", jsonTask("suffix"), "content-type", "application/vnd.acme.task+json"),
		harness.Record(stream.TasksHigh, "", body(`"task_id":"same","priority":"high","depends_on":[],"submitted_at":"1971-01-01T00:00:00Z"`)),
		harness.Record(stream.TasksNormal, "", jsonTask("seconds")),
		harness.Record(stream.TasksNormal, "", jsonTask("zero")),
	}
	began := time.Now()
	good[7].Timestamp, good[8].Timestamp = time.UnixMilli(began.Unix()), time.UnixMilli(0)
	var records []*kgo.Record
	for _, b := range bads {
		records = append(records, b.record)
	}
	in.Produce(t, append(records, good...)...)

	letters := in.Consume(t, stream.DLQ).Until(t, "all that is refused is a dead letter", func(all []*kgo.Record) bool { return len(all) >= len(bads) })
	require.Len(t, letters, len(bads))
	for _, b := range bads {
		letter := find(letters, b.record.Value)
		require.NotNil(t, letter, b.name)
		require.Contains(t, harness.Header(letter, "dlq-error"), b.error, b.name)
	}
	ids := []string{"claims", "bom", "confluent", "quoted", "octets", "suffix", "same", "seconds", "zero"}
	for id, r := range resultsOf(t, in, ids...) {
		require.Equal(t, task.Success, r.State, id)
		require.WithinRange(t, r.SubmittedAt, began.Add(-time.Minute), time.Now(), "%s: the log's time, or that of reading", id)
	}
	in.Await(t, ids, harness.Patience)
	in.AwaitRecorded(t)

	type accepted struct{ Actor, Addr, Detail string }
	rows := harness.Rows[accepted](t, in, `SELECT actor_id AS actor, source_addr AS addr, detail::text AS detail FROM audit_log WHERE action = 'task.accepted' AND task_id = 'claims'`)
	require.Len(t, rows, 1, "its header does not hide that it was accepted")
	require.Equal(t, task.DefaultTenant, rows[0].Actor)
	require.True(t, strings.HasPrefix(rows[0].Addr, "kafka:"), rows[0].Addr)
	require.JSONEq(t, `{"identity":"claimed","ignored":["origin-accepted","origin-actor","origin-addr","origin-agent"]}`, rows[0].Detail)
	require.Zero(t, harness.SQL[int](t, in, `SELECT count(*) FROM audit_log WHERE actor_id LIKE 'root%' OR source_addr LIKE '203.%' OR user_agent LIKE 'curl%'`))
	require.Equal(t, 2, harness.SQL[int](t, in, `SELECT count(*) FROM audit_log WHERE action = 'task.accepted' AND detail->>'record_time' IS NOT NULL AND task_id IN ('seconds', 'zero')`))
	require.Equal(t, len(ids), harness.SQL[int](t, in, `SELECT count(*) FROM audit_log WHERE action = 'task.accepted'`))

	for _, r := range in.All(t, stream.Results) {
		switch string(r.Key) {
		case "claims":
			require.Equal(t, "c-1", harness.Header(r, "correlation-id"), "the client's own header comes back")
			require.Equal(t, "user-7", harness.Header(r, "sender-key"))
			for _, h := range []string{"origin-actor", "origin-accepted", "dlq-reason", "batchyard-x"} {
				require.Empty(t, harness.Header(r, h), h)
			}
			require.Equal(t, "application/json", harness.Header(r, "content-type"))
		case "quoted":
			require.Empty(t, harness.Header(r, "sender-key"), "the key is the task's id")
			require.Equal(t, "application/json", harness.Header(r, "content-type"), "the result's, not the task's")
		}
	}
}
