package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// The tasks below are what third-party clients would write.
func jsonTask(id string) []byte {
	return fmt.Appendf(nil, `{"task_id":%q,"model":"m","input":{"messages":[{"role":"user","content":"hello from %s"}]}}`, id, id)
}

func msgpackTask(t *testing.T, id string) []byte {
	t.Helper()
	b, err := msgpack.Marshal(map[string]any{"task_id": id, "model": "m", "labels": map[string]string{"by": "hand"},
		"input": map[string]any{"messages": []any{map[string]any{"role": "user", "content": "hello from " + id}}}})
	require.NoError(t, err)
	return b
}

// resultsOf reads the results topic until all the tasks have a result.
func resultsOf(t *testing.T, in *harness.Installation, ids ...string) map[string]*task.Result {
	t.Helper()
	found := map[string]*task.Result{}
	seen := 0
	in.Consume(t, stream.Results).Until(t, fmt.Sprintf("%d tasks have a result", len(ids)), func(all []*kgo.Record) bool {
		for ; seen < len(all); seen++ {
			r, err := task.DecodeResult(all[seen].Value, harness.Header(all[seen], task.HeaderContentType))
			require.NoError(t, err)
			require.Equal(t, r.TaskID, string(all[seen].Key), "the key is the task's id")
			require.NotContainsf(t, found, r.TaskID, "a second result")
			found[r.TaskID] = r
		}
		for _, id := range ids {
			if found[id] == nil {
				return false
			}
		}
		return true
	})
	return found
}

func TestAnyKafkaClientCanSubmit(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 4, ServiceTime: 2 * time.Millisecond})
	in.Process(t, "serve", "router", "batcher", "workers", "audit")

	// franz-go: with and without content-type, key and id.
	in.Produce(t,
		harness.Record(stream.TasksNormal, "", jsonTask("franz-json")),
		harness.Record(stream.TasksHigh, "x", jsonTask("franz-json-typed"), "content-type", "application/json"),
		harness.Record(stream.TasksLow, "", msgpackTask(t, "franz-pack")),
		harness.Record(stream.TasksNormal, "", msgpackTask(t, "franz-pack-typed"), "content-type", "application/msgpack"))
	// kcat, which is based on librdkafka.
	pack := filepath.Join(in.Dir, "task.msgpack")
	require.NoError(t, os.WriteFile(pack, msgpackTask(t, "kcat-pack"), 0o600))
	in.Kcat(t, jsonTask("kcat-json"), "-P", "-t", in.Topic(stream.TasksNormal))
	in.Kcat(t, nil, "-P", "-t", in.Topic(stream.TasksNormal), "-H", "content-type=application/msgpack", pack)

	ids := []string{"franz-json", "franz-json-typed", "franz-pack", "franz-pack-typed", "kcat-json", "kcat-pack"}
	results := resultsOf(t, in, ids...)
	for _, id := range ids {
		require.Equalf(t, task.Success, results[id].State, "%+v", results[id])
		require.Equal(t, "a", results[id].Device)
		require.Equal(t, task.DefaultTenant, results[id].Tenant)
	}
	require.Equal(t, map[string]string{"by": "hand"}, results["kcat-pack"].Labels)
	require.Equal(t, task.High, results["franz-json-typed"].Priority, "the topic is the priority")

	// kcat can read the results as well, and they are JSON.
	out := in.Kcat(t, nil, "-C", "-t", in.Topic(stream.Results), "-o", "beginning", "-e", "-q")
	require.Equal(t, len(ids), strings.Count(out, "\n"))
	for line := range strings.Lines(out) {
		require.Truef(t, json.Valid([]byte(line)), "%s", line)
	}
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, nil)

	// Without an id, each record is a separate task, whatever its key.
	anonymous := []byte(`{"model":"m","input":{"messages":[{"role":"user","content":"x"}]}}`)
	in.Produce(t, harness.Record(stream.TasksNormal, "user-7", anonymous), harness.Record(stream.TasksNormal, "user-7", anonymous))
	type count struct{ N int }
	require.Eventually(t, func() bool {
		return harness.Rows[count](t, in, `SELECT count(*)::int AS n FROM results WHERE task_id LIKE 'tasks.normal-%' AND state = 'SUCCESS'`)[0].N == 2
	}, harness.Patience, 50*time.Millisecond)
}

// bad is a record that is not a valid task.
type bad struct {
	name   string
	record *kgo.Record
	error  string // must be part of the dead letter's error
}

func badRecords(t *testing.T, maxInput int) []bad {
	t.Helper()
	large, err := json.Marshal(map[string]any{"model": "m", "input": map[string]any{"messages": []any{map[string]any{"role": "user", "content": strings.Repeat("x", maxInput)}}}})
	require.NoError(t, err)
	return []bad{
		{"garbage", harness.Record(stream.TasksNormal, "g", []byte("\x01\x02 this is no task \xff")), "neither JSON nor MessagePack"},
		{"broken JSON", harness.Record(stream.TasksNormal, "", []byte(`{"model":"m","input":{`), "content-type", "application/json"), "JSON"},
		{"no model", harness.Record(stream.TasksNormal, "nm", []byte(`{"input":{"messages":[{"role":"user","content":"private words"}]}}`), "mine", "kept"), "model"},
		{"too large", harness.Record(stream.TasksNormal, "", large), "input"},
		{"bomb", harness.Record(stream.TasksNormal, "", []byte{0xdf, 0xff, 0xff, 0xff, 0xff}, "content-type", "application/msgpack"), ""},
		{"array bomb", harness.Record(stream.TasksNormal, "", []byte{0xdd, 0xff, 0xff, 0xff, 0xff}, "content-type", "application/msgpack"), ""},
		{"empty", harness.Record(stream.TasksNormal, "", nil), "empty"},
		{"strange type", harness.Record(stream.TasksNormal, "", jsonTask("typed"), "content-type", "text/html"), "neither JSON nor MessagePack"},
	}
}

func TestInvalidRecordsBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	const maxInput = 64 << 10
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"task.max_input": maxInput})
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve", "router", "batcher", "workers", "audit")

	// Valid tasks before, between and after them, in every partition.
	bads := badRecords(t, maxInput)
	var records []*kgo.Record
	var ids []string
	good := func(n int) {
		for range n {
			id := fmt.Sprintf("good-%d", len(ids))
			ids = append(ids, id)
			records = append(records, harness.Record(stream.TasksNormal, id, jsonTask(id)))
		}
	}
	for _, b := range bads {
		good(10)
		records = append(records, b.record)
	}
	good(10)
	in.Produce(t, records...)
	in.Await(t, ids, harness.Patience)
	letters := in.Consume(t, stream.DLQ).Until(t, "all invalid records are dead letters", func(all []*kgo.Record) bool { return len(all) >= len(bads) })
	require.Len(t, letters, len(bads))
	for _, b := range bads {
		letter := find(letters, b.record.Value)
		require.NotNilf(t, letter, "%s is kept unchanged", b.name)
		require.Equal(t, "router", harness.Header(letter, "dlq-stage"), b.name)
		require.Equal(t, "invalid", harness.Header(letter, "dlq-reason"), b.name)
		require.NotEmpty(t, harness.Header(letter, "dlq-error"), b.name)
		require.Contains(t, harness.Header(letter, "dlq-error"), b.error, b.name)
		require.NotContains(t, harness.Header(letter, "dlq-error"), "private words")
		require.Equal(t, stream.TasksNormal, strings.TrimPrefix(harness.Header(letter, "dlq-topic"), in.TopicPrefix), b.name)
		require.Equal(t, strconv.FormatInt(b.record.Offset, 10), harness.Header(letter, "dlq-offset"), b.name)
		require.Equal(t, string(b.record.Key), string(letter.Key))
	}
	require.Equal(t, "kept", harness.Header(find(letters, bads[2].record.Value), "mine"))
	in.CheckPromises(t, ids, nil)
	require.Equal(t, len(bads), harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'record.dead_lettered'"))

	bombs(t, in, p, len(bads))
	deadLetterCommands(t, in, len(bads))
}

func find(records []*kgo.Record, value []byte) *kgo.Record {
	for _, r := range records {
		if bytes.Equal(r.Value, value) {
			return r
		}
	}
	return nil
}

// bombs sends small records that announce billions of entries, and checks that memory
// stays flat.
func bombs(t *testing.T, in *harness.Installation, p *harness.Process, before int) {
	t.Helper()
	const n = 200
	var records []*kgo.Record
	for i := range n {
		records = append(records, harness.Record(stream.TasksNormal, "", []byte{[]byte{0xdf, 0xdd, 0xc6, 0xdb}[i%4], 0x7f, 0xff, 0xff, 0xff}, "content-type", "application/msgpack"))
	}
	was := rss(t, p.Pid())
	in.Produce(t, records...)
	in.Consume(t, stream.DLQ).Until(t, "all bombs are dead letters", func(all []*kgo.Record) bool { return len(all) == before+n })
	if now := rss(t, p.Pid()); was > 0 {
		t.Logf("resident memory: %d MiB before %d bombs, %d MiB after", was>>20, n, now>>20)
		require.Less(t, now-was, int64(32<<20), "memory stays flat")
	}
	in.Produce(t, harness.Record(stream.TasksNormal, "", jsonTask("after-the-bombs")))
	in.Await(t, []string{"after-the-bombs"}, harness.Patience)
}

// rss returns the resident memory of a process in bytes, or 0 if it is unknown.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			require.NoError(t, err)
			return n << 10
		}
	}
	t.Fatal("VmRSS is missing")
	return 0
}

func deadLetterCommands(t *testing.T, in *harness.Installation, named int) {
	t.Helper()
	ran := in.Run(t, "dlq", "list", "--all", "--json")
	require.Zerof(t, ran.Code, "%s", ran.Stderr)
	type letter struct {
		At, From, Stage, Reason, Error string
	}
	var without *letter
	n := 0
	for line := range strings.Lines(ran.Stdout) {
		var l letter
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		if strings.Contains(l.Error, "model") {
			without = &l
		}
		n++
	}
	require.Equal(t, named+200, n)
	require.NotNil(t, without)

	table := in.Run(t, "dlq", "list", "--limit", "5")
	require.Zero(t, table.Code)
	require.Equal(t, 6, strings.Count(table.Stdout, "\n"), "%s", table.Stdout)
	shown := in.Run(t, "dlq", "show", without.At)
	require.Zerof(t, shown.Code, "%s", shown.Stderr)
	require.Contains(t, shown.Stdout, "private words", "dlq show prints the whole record")
	require.Contains(t, shown.Stdout, without.From)

	// The task still has no model, so it becomes a dead letter again.
	replay := in.Run(t, "dlq", "replay", without.At, "--json")
	require.Zerof(t, replay.Code, "%s", replay.Stderr)
	require.Contains(t, replay.Stdout, `"replayed":1`)
	in.Consume(t, stream.DLQ).Until(t, "the replayed record is a dead letter again", func(all []*kgo.Record) bool { return len(all) == named+200+1 })
	in.AwaitRecorded(t)
	require.Equal(t, 1, harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'record.replayed' AND actor_type = 'user'"))
}

// TestReplayedTasksRun shows the use of dead letters: a limit was too low, it is
// raised, and the replayed task runs.
func TestReplayedTasksRun(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"task.max_input": 2048})
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	small := in.Process(t, "serve")
	body := fmt.Sprintf(`{"task_id":"large","model":"m","input":{"messages":[{"role":"user","content":%q}]}}`, strings.Repeat("x", 4096))
	in.Produce(t, harness.Record(stream.TasksNormal, "large", []byte(body)))
	in.Consume(t, stream.DLQ).Until(t, "the task is a dead letter", func(all []*kgo.Record) bool { return len(all) == 1 })
	require.Zero(t, small.Term(t))

	in.WriteConfig(t, in.ConfigPath, map[string]any{"task.max_input": 1 << 20})
	in.Process(t, "serve")
	replay := in.Run(t, "dlq", "replay", "--reason", "invalid")
	require.Zerof(t, replay.Code, "%s", replay.Stderr)
	in.Await(t, []string{"large"}, harness.Patience)
	in.CheckPromises(t, []string{"large"}, nil)
	require.Equal(t, task.Success, resultsOf(t, in, "large")["large"].State)
}
