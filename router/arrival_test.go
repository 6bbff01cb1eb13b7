package router

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// foreign is a record that a client wrote.
func foreign(topic, value string, at time.Time, headers ...string) *stream.Record {
	rec := &stream.Record{Topic: topic, Partition: 1, Offset: 7, Value: []byte(value), Time: at}
	for i := 0; i < len(headers); i += 2 {
		rec.Headers = append(rec.Headers, stream.Header{Key: headers[i], Value: []byte(headers[i+1])})
	}
	return rec
}

const plainTask = `{"task_id":"t","tenant":"acme","model":"m","input":{}}`

// A client cannot say what only Batchyard knows.
func TestWhatOnlyBatchyardMaySayIsRefusedOrIgnored(t *testing.T) {
	t.Parallel()
	r, now := &Router{}, time.Now()
	for value, c := range map[string]struct{ topic, field, problem string }{
		`{"model":"m","input":{},"progress":{"attempts":[{"number":1000000}]}}`:  {stream.TasksNormal, "progress", "internal state"},
		`{"model":"m","input":{},"priority":"low"}`:                              {stream.TasksHigh, "priority", "it is low, but the record is in the topic tasks.high"},
		`{"model":"m","input":{},"priority":"high"}`:                             {stream.TasksLow, "priority", "it is high, but the record is in the topic tasks.low"},
		`{"model":"m","input":{},"priority":"urgent"}`:                           {stream.TasksNormal, "priority", "in the topic tasks.normal, and its priority is unknown"},
		`{"model":"m","input":{},"priority":"High"}`:                             {stream.TasksHigh, "priority", "its priority is unknown"},
		`{"model":"m","input":{},"task_id":"a","depends_on":["a"]}`:              {stream.TasksNormal, "depends_on", "not supported yet"},
		`{"model":"m","input":{},"trace_id":"00000000000000000000000000000000"}`: {stream.TasksNormal, "trace_id", "not a W3C trace id"},
		`{"model":"m","input":{},"tenant":"a","Tenant":"b"}`:                     {stream.TasksNormal, "Tenant", "unknown field"},
	} {
		_, err := r.decode(foreign(c.topic, value, now))
		var fe *task.FieldError
		require.ErrorAs(t, err, &fe, value)
		require.Equal(t, c.field, fe.Field, value)
		require.Contains(t, fe.Problem, c.problem)
		require.NotEmpty(t, fe.Remedy)
	}
	for topic, priority := range topicPriority {
		for _, value := range []string{plainTask, `{"model":"m","input":{},"priority":"` + string(priority) + `"}`, `{"model":"m","input":{},"priority":null,"depends_on":[]}`} {
			it, err := r.decode(foreign(topic, value, now))
			require.NoError(t, err, value)
			require.Equal(t, priority, it.Task.Priority)
		}
	}

	rec := foreign(stream.TasksNormal, `{"task_id":"t","tenant":"acme","model":"m","input":{},"submitted_at":"1971-01-01T00:00:00Z"}`, now,
		records.HeaderAccepted, "1", records.HeaderActor, "root@corp", records.HeaderAddr, "203.0.113.7:1", records.HeaderAgent, "curl")
	it, err := r.decode(rec)
	require.NoError(t, err)
	require.Equal(t, now.UnixMilli(), it.Task.SubmittedAt.UnixMilli(), "not the sender's to choose")
	require.Empty(t, it.Client)
	require.Equal(t, task.Origin{Actor: "acme", Addr: "kafka:tasks.normal/1@7"}, submitter(rec, it.Task))
	require.Equal(t, []stream.Header{{Key: records.HeaderAccepted, Value: []byte("1")}}, records.RequeueHeaders(rec), "what is claimed does not become ours")
	a := arrivals{now: now}
	a.accept(it)
	require.Len(t, a.unit.Events, 2, "it gets its task.accepted, whatever its header says")
	require.Equal(t, task.TaskAccepted, a.unit.Events[0].Action)
	require.JSONEq(t, `{"identity":"claimed","ignored":["origin-accepted","origin-actor","origin-addr","origin-agent"]}`, string(a.unit.Events[0].Detail))
}

// An implausible timestamp would let a task go first, or last.
func TestImplausibleTimestampsAreReplaced(t *testing.T) {
	t.Parallel()
	now := time.Now()
	const retention = 7 * 24 * time.Hour
	r := &Router{deps: Deps{Retention: func(string) time.Duration { return retention }}}
	for name, at := range map[string]time.Time{
		"none": time.UnixMilli(-1), "zero": time.UnixMilli(0), "seconds": time.UnixMilli(now.Unix()), "microseconds": time.UnixMilli(now.UnixMicro()), "nanoseconds": time.UnixMilli(now.UnixNano()),
		"smallest": time.UnixMilli(-1 << 63), "no time": {}, "next year": now.AddDate(1, 0, 0), "two hours ahead": now.Add(2 * time.Hour), "older than the topic keeps": now.Add(-9 * 24 * time.Hour),
	} {
		rec := foreign(stream.TasksNormal, plainTask, at)
		it, err := r.decode(rec)
		require.NoError(t, err, name)
		require.WithinDuration(t, now, it.Task.SubmittedAt, time.Minute, name)
		a := arrivals{now: now, retention: retention}
		a.accept(it)
		var detail struct {
			RecordTime *int64 `json:"record_time"`
		}
		require.NoError(t, json.Unmarshal(a.unit.Events[0].Detail, &detail))
		require.NotNil(t, detail.RecordTime, name)
		require.Equal(t, at.UnixMilli(), *detail.RecordTime, name)
		require.Equal(t, records.TaskID(rec), records.TaskID(foreign(stream.TasksNormal, plainTask, at)), "read twice, it is the same task")
	}
	for name, at := range map[string]time.Time{"now": now, "a fast clock": now.Add(time.Minute), "a backlog": now.Add(-6 * 24 * time.Hour)} {
		it, err := r.decode(foreign(stream.TasksNormal, plainTask, at))
		require.NoError(t, err)
		require.Equal(t, at.UnixMilli(), it.Task.SubmittedAt.UnixMilli(), name)
		a := arrivals{now: now, retention: retention}
		a.accept(it)
		require.JSONEq(t, `{"identity":"claimed"}`, string(a.unit.Events[0].Detail), name)
	}
	kept, err := (&Router{}).decode(foreign(stream.TasksNormal, plainTask, now.AddDate(-2, 0, 0)))
	require.NoError(t, err)
	require.Equal(t, now.AddDate(-2, 0, 0).UnixMilli(), kept.Task.SubmittedAt.UnixMilli(), "topics without a retention time have old records")
}

func TestTraceparents(t *testing.T) {
	t.Parallel()
	const trace = "0af7651916cd43dd8448eb211c80319c"
	for header, ok := range map[string]bool{
		"00-" + trace + "-b7ad6b7169203331-01": true, "00-" + trace + "-b7ad6b7169203331-00": true, "cc-" + trace + "-b7ad6b7169203331-01": true, "cc-" + trace + "-b7ad6b7169203331-01-what-the-future": true,
		"00-" + trace + "-b7ad6b7169203331-01-more": false, "cc-" + trace + "-b7ad6b7169203331-01.more": false, "ff-" + trace + "-b7ad6b7169203331-01": false, "00-00000000000000000000000000000000-b7ad6b7169203331-01": false,
		"00-" + trace + "-0000000000000000-01": false, "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01": false, "00-" + trace + "-B7AD6B7169203331-01": false, "0G-" + trace + "-b7ad6b7169203331-01": false,
		"00-" + trace + "-b7ad6b7169203331-0": false, "00_" + trace + "-b7ad6b7169203331-01": false, "": false, "00-" + trace: false,
	} {
		rec := foreign(stream.TasksNormal, plainTask, time.Now(), "traceparent", header)
		it, err := (&Router{}).decode(rec)
		require.NoError(t, err)
		require.Equal(t, ok, it.Task.TraceID == trace, header)
		require.NoError(t, it.Task.CheckTrace())
	}
	it, err := (&Router{}).decode(foreign(stream.TasksNormal, `{"model":"m","input":{},"trace_id":"0AF7651916CD43DD8448EB211C80319C"}`, time.Now()))
	require.NoError(t, err)
	require.Equal(t, trace, it.Task.TraceID, "W3C ids are lower-case")
}

// What a client adds to its record comes back on the result's, within limits, and through requeues.
func TestHeadersAndKeyAreForTheResult(t *testing.T) {
	t.Parallel()
	headers := []string{"correlation-id", "c", "content-type", "application/json", "origin-actor", "root", "batchyard-signature", "v1,forged", "dlq-reason", "r", "parked-until", "p", "replay-id", "r", HeaderSenderKey, "fake", "a\xff", "b",
		"empty", "", "large", strings.Repeat("x", maxSentBytes)}
	for range 2 * maxSent {
		headers = append(headers, "n", "1")
	}
	rec := foreign(stream.TasksNormal, plainTask, time.Now(), headers...)
	rec.Key = []byte("user-7")
	it, err := (&Router{}).decode(rec)
	require.NoError(t, err)
	requeued, err := records.TaskMessage(stream.TasksNormal, it.Task.Requeued())
	require.NoError(t, err)
	again, err := wire.DecodeOwnTask(requeued.Value, wire.ContentMsgpack)
	require.NoError(t, err)
	m, err := records.ResultMessage(task.NewResult(again, task.Failed, time.Now()))
	require.NoError(t, err)
	require.Equal(t, "t", m.Key)
	require.Len(t, m.Headers, 1+maxSent)
	want := []stream.Header{{Key: wire.HeaderContentType, Value: []byte(wire.ContentJSON)}, {Key: HeaderSenderKey, Value: []byte("user-7")}, {Key: "correlation-id", Value: []byte("c")}}
	require.Equal(t, want, m.Headers[:3])
	require.Equal(t, "empty", m.Headers[3].Key)
	for _, h := range m.Headers[4:] {
		require.Equal(t, stream.Header{Key: "n", Value: []byte("1")}, h)
	}
	rec = foreign(stream.TasksNormal, plainTask, time.Now())
	rec.Key = []byte("t")
	it, err = (&Router{}).decode(rec)
	require.NoError(t, err)
	require.Nil(t, it.Task.Progress, "nothing to repeat")
}

// A backoff is a duration: whichever clock is wrong by hours, the task waits for no longer than that.
func TestABackoffNeedsNoCommonClock(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		written time.Time
		left    time.Duration
	}{
		"just written":          {now, time.Minute},
		"read later":            {now.Add(-20 * time.Second), 40 * time.Second},
		"long ago":              {now.Add(-time.Hour), 0},
		"the broker is ahead":   {now.Add(2 * time.Hour), time.Minute},
		"the broker is behind":  {now.Add(-2 * time.Hour), 0},
		"written without times": {time.UnixMilli(-1), time.Minute},
	} {
		require.Equal(t, now.Add(c.left).UTC(), backoffEnd(&stream.Record{Time: c.written}, time.Minute, now), name)
	}
}
