package resolve_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/audit/recorder/resolve"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// place is an installation in which the test acts as the router and the workers.
type place struct {
	t    *testing.T
	log  *stream.Client
	out  *stream.Outbox
	pool *pgxpool.Pool
}

func newPlace(t *testing.T) *place {
	l := audittest.OpenLog(t, 3)
	p := &place{t: t, log: l, out: l.NewOutbox("test", 10_000, 64<<20), pool: audittest.NewPool(t)}
	t.Cleanup(func() { _ = p.out.Close(context.WithoutCancel(t.Context())) })
	return p
}

func (p *place) deps() resolve.Deps {
	return resolve.Deps{Log: p.log, Pool: p.pool, Outbox: p.out, Logger: audittest.Quiet(), Metrics: &metrics.New(nil).Audit, Instance: "audit@test-1"}
}

func (p *place) put(u stream.Unit) {
	p.t.Helper()
	acked := make(chan error, 1)
	u.Acked = func(err error) { acked <- err }
	require.NoError(p.t, p.out.Put(p.t.Context(), u))
	require.NoError(p.t, <-acked)
}

func newTask(id string) *task.Task {
	t := &task.Task{ID: id, Tenant: "acme", Model: "m", Input: task.Input(`{"messages":[]}`), Callback: &task.Callback{URL: "https://example.com/hook"}}
	t.Normalize(time.Now())
	return t
}

func (p *place) message(topic string, t *task.Task, headers ...stream.Header) stream.Message {
	m, err := records.TaskMessage(topic, t, headers...)
	require.NoError(p.t, err)
	return m
}

func (p *place) submit(topic string, ids ...string) {
	var u stream.Unit
	for _, id := range ids {
		u.Messages = append(u.Messages, p.message(topic, newTask(id)))
	}
	p.put(u)
}

func (p *place) end(ids ...string) {
	var u stream.Unit
	for _, id := range ids {
		r := task.NewResult(newTask(id), task.Success, time.Now())
		r.Output, r.Status = task.Input(`{"a":1}`), 200
		m, err := records.ResultMessage(r)
		require.NoError(p.t, err)
		u.Messages = append(u.Messages, m)
	}
	p.put(u)
}

// finish acts as the routers: they finish all records of a topic that hold none of the tasks, and commit.
func (p *place) finish(stage, topic string, keep ...string) {
	p.t.Helper()
	left := func() (n int64) {
		all, err := p.log.Offsets(p.t.Context(), stage, topic)
		require.NoError(p.t, err)
		for _, s := range all {
			for at := s.First; at < s.End; at++ {
				if s.Unfinished(at) {
					n++
				}
			}
		}
		return n
	}
	ctx, stop := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- p.log.Consume(ctx, stream.ConsumerConfig{Group: stage, Topic: topic, DrainTimeout: 100 * time.Millisecond}, func(_ context.Context, recs []*stream.Record) {
			for _, r := range recs {
				if !slices.Contains(keep, string(r.Key)) {
					r.Done()
				}
			}
		}, nil)
	}()
	require.Eventually(p.t, func() bool { return left() == int64(len(keep)) }, testenv.Patience, 20*time.Millisecond)
	stop()
	require.NoError(p.t, <-done)
}

// again returns the ids of the tasks that run again, sorted.
func (p *place) again() string {
	var ids []string
	for _, topic := range []string{stream.TasksHigh, stream.TasksNormal, stream.TasksLow} {
		require.NoError(p.t, p.log.Scan(p.t.Context(), topic, func(r *stream.Record) error {
			if r.Header(resolve.HeaderRunAgain) != "" {
				t, err := wire.DecodeOwnTask(r.Value, r.Header(wire.HeaderContentType))
				require.NoError(p.t, err)
				require.Positive(p.t, t.Requeues(), "a copy, not a second submit")
				ids = append(ids, t.ID)
			}
			return nil
		}))
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// lost returns the ids of the tasks that ended because they were lost, sorted.
func (p *place) lost() string {
	var ids []string
	require.NoError(p.t, p.log.Scan(p.t.Context(), stream.Results, func(r *stream.Record) error {
		res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType))
		require.NoError(p.t, err)
		if res.Error != nil && res.Error.Class == task.ClassLost {
			require.Equal(p.t, task.Failed, res.State)
			// What a task asked is in its record. Without that, any other fingerprint would make the recorder
			// take the result for one of another request, and the task would never end.
			asked := newTask(res.TaskID).Fingerprint().String()
			if strings.HasPrefix(res.TaskID, "gone-") {
				asked = ""
			}
			require.Equal(p.t, asked, res.Fingerprint, res.TaskID)
			ids = append(ids, res.TaskID)
		}
		return nil
	}))
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

func (p *place) hole(topic string) {
	audittest.Execute(p.t, p.pool, `INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id)
		VALUES ($1, 0, 'records_missed', 0, 5, 9, now(), 'audit@test')`, topic)
}

func (p *place) resolved() bool {
	return audittest.One[bool](p.t, p.pool, "SELECT bool_and(resolved_at IS NOT NULL) FROM stream_breaks")
}

func ids(format string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(format, i))
	}
	return all
}

// Kafka deletes the events and the results of 40 tasks under a stopped recorder. The recorder finds them
// by itself, and all of them end: a callback is due for each.
func TestTasksWhoseAnswersWereDeletedRunAgain(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	all := ids("t-%02d", 40)
	p.submit(stream.TasksNormal, all...)
	p.finish("router", stream.TasksNormal)
	p.end(all...)
	for _, topic := range []string{stream.Events, stream.Results} {
		audittest.DeleteRecords(t, p.log, topic)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	rec := recorder.New(recorder.Config{CheckpointDir: t.TempDir()}, recorder.Deps{Log: p.log, Pool: p.pool, Instance: "audit@one-1", Logger: audittest.Quiet(), Metrics: metrics.New(nil)})
	go func() { done <- rec.Run(ctx, func() {}) }()
	stop := sync.OnceFunc(func() { cancel(); require.NoError(t, <-done) })
	t.Cleanup(stop)
	require.Eventually(t, func() bool { return p.again() == strings.Join(all, " ") }, testenv.Patience, 100*time.Millisecond)
	require.False(t, p.resolved())
	require.Eventually(t, func() bool {
		return audittest.One[int](t, p.pool, "SELECT count(*) FROM audit_log WHERE action = 'task.requeued' AND detail->>'reason' = 'lost'") == 40
	}, testenv.Patience, 20*time.Millisecond)
	p.finish("router", stream.TasksNormal)
	p.end(all...)
	require.Eventually(t, func() bool {
		return audittest.One[int](t, p.pool, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS'") == 40 && audittest.One[int](t, p.pool, "SELECT count(*) FROM callbacks") == 40
	}, testenv.Patience, 20*time.Millisecond)
	require.Eventually(t, p.resolved, testenv.Patience, 100*time.Millisecond)
	stop()
	require.Equal(t, strings.Join(all, " "), p.again(), "once each")
	require.Empty(t, p.lost())
}

// While a transaction of some client is open, no consumer can read what was written behind it: a task that seems to be
// nowhere may be there. Nothing counts as lost before the transaction has ended.
func TestNothingIsLostWhileATransactionIsOpen(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.submit(stream.TasksNormal, "moved")
	p.finish("router", stream.TasksNormal)
	abort := audittest.OpenTransaction(t, p.log, stream.TasksNormal, []byte("from another client"))
	p.put(stream.Unit{Messages: []stream.Message{p.message(stream.TasksNormal, newTask("moved").Requeued())}})
	p.hole(stream.Results)
	r := resolve.New(p.deps())
	_, err := r.Once(t.Context())
	open := new(stream.OpenTransactionError)
	require.ErrorAs(t, err, &open)
	require.Equal(t, stream.TasksNormal, open.Topic)
	require.False(t, p.resolved())

	abort()
	require.Eventually(t, func() bool {
		left, err := r.Once(t.Context())
		return err == nil && !left
	}, testenv.Patience, 20*time.Millisecond, "the end of the transaction")
	require.Empty(t, p.again())
	require.Empty(t, p.lost())
	require.True(t, p.resolved(), "it waits in its topic")
}

// Whatever is on its way is left alone, wherever it is; what is lost runs again once, and ends if it is
// lost again, or if its records are gone, too. All of that holds when a pass remembers only a few tasks.
func TestOnlyLostTasksRunAgain(t *testing.T) {
	t.Parallel()
	for _, most := range []int{3, 1000} {
		t.Run(fmt.Sprint("remembers ", most), func(t *testing.T) {
			t.Parallel()
			testOnlyLost(t, most)
		})
	}
}

func testOnlyLost(t *testing.T, most int) {
	t.Helper()
	p := newPlace(t)
	lost, answered := ids("lost-%02d", 25), ids("answered-%02d", 30)
	p.submit(stream.TasksNormal, append(slices.Clone(answered), "unread", "assigned", "batched", "unrecorded", "dead", "requeued")...)
	p.submit(stream.TasksHigh, lost...)
	p.put(stream.Unit{Messages: []stream.Message{p.message(stream.TasksParked, newTask("parked")), p.message(stream.TasksParked, newTask("lost-00").Requeued())}})
	assignment := func(id string) task.Assignment {
		return task.Assignment{Task: *newTask(id), Device: task.DeviceRef{ID: "d"}, Attempt: 1}
	}
	as, err := wire.EncodeFrame(wire.FrameAssignments, []task.Assignment{assignment("assigned")})
	require.NoError(t, err)
	bs, err := wire.EncodeFrame(wire.FrameBatches, []task.Batch{{ID: "b", Assignments: []task.Assignment{assignment("batched")}}})
	require.NoError(t, err)
	p.put(stream.Unit{Messages: []stream.Message{{Topic: stream.Assignments, Key: "d", Value: as}, {Topic: stream.Batches, Key: "d", Value: bs}}})
	require.NoError(t, p.log.Scan(t.Context(), stream.TasksNormal, func(r *stream.Record) error {
		if string(r.Key) == "unread" { // its id was also used for another request, which says nothing of a lost task
			for _, id := range []string{"lost-01", "gone-01"} {
				other := &stream.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: []byte(id), Value: p.message(stream.TasksNormal, newTask(id)).Value, Headers: r.Headers}
				p.put(stream.Unit{Messages: []stream.Message{records.DeadLetter(other, "router", records.ReasonIDReused, fmt.Errorf("its id belongs to another request"))}})
			}
		}
		if string(r.Key) == "dead" {
			p.put(stream.Unit{Messages: []stream.Message{records.DeadLetter(r, "router", "invalid", fmt.Errorf("it is broken"))}})
		}
		return nil
	}))
	p.finish("router", stream.TasksHigh)
	p.finish("router", stream.TasksNormal, "unread")
	p.finish("router", stream.TasksParked, "parked")
	p.put(stream.Unit{Messages: []stream.Message{p.message(stream.TasksLow, newTask("requeued").Requeued())}})
	p.end("unrecorded")
	for _, id := range answered {
		audittest.Execute(t, p.pool, `INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at) VALUES ('acme', $1, 'SUCCESS', 1, 0, 0, now())`, id)
	}
	row := func(ids ...string) {
		for _, id := range ids {
			audittest.Execute(t, p.pool, `INSERT INTO tasks (tenant, task_id, state, seq, submitted_at, updated_at, known_from, model, endpoint, priority, job_id, callback_url)
				VALUES ('acme', $1, 'PENDING', 0, now(), now(), 2, 'm', '/v1/chat/completions', 'low', 'job', 'https://example.com/hook')`, id)
		}
	}
	gone := ids("gone-%02d", 5)
	row(append(gone, "unread", "assigned", "batched", "unrecorded", "dead", "requeued", "parked", "lost-03")...)

	r := resolve.NewSmall(p.deps(), most)
	left, err := r.Once(t.Context())
	require.NoError(t, err)
	require.False(t, left)
	require.Empty(t, p.again()+p.lost(), "without a hole")

	p.hole(stream.Events) // the only one that is known: an event in it may have said that there is another
	deps := p.deps()
	deps.LostAfter = time.Hour
	patient := resolve.New(deps)
	left, err = patient.Once(t.Context())
	require.NoError(t, err)
	require.True(t, left)
	require.Equal(t, strings.Join(lost, " "), p.again())
	require.Empty(t, p.lost(), "the record of a task that was accepted a moment ago may still be written")

	for range 2 {
		left, err = r.Once(t.Context())
		require.NoError(t, err)
		require.True(t, left, "they are underway")
		require.Equal(t, strings.Join(lost, " "), p.again(), "once")
		require.Equal(t, strings.Join(gone, " "), p.lost())
	}

	// Most of them end; some are lost again.
	p.finish("router", stream.TasksHigh)
	p.finish("router", stream.TasksNormal, "unread") // the copy of the parked one, which says its own priority
	for _, id := range append(slices.Clone(lost[5:]), gone...) {
		audittest.Execute(t, p.pool, `INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at) VALUES ('acme', $1, 'SUCCESS', 1, 0, 0, now())`, id)
		audittest.Execute(t, p.pool, `UPDATE tasks SET state = 'SUCCESS' WHERE task_id = $1`, id)
	}
	left, err = r.Once(t.Context())
	require.NoError(t, err)
	require.True(t, left)
	require.Equal(t, strings.Join(lost, " "), p.again())
	require.Equal(t, strings.Join(append(slices.Clone(gone), lost[:5]...), " "), p.lost())
	require.False(t, p.resolved())
	for _, id := range lost[:5] {
		audittest.Execute(t, p.pool, `INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at) VALUES ('acme', $1, 'FAILED', 1, 0, 0, now())`, id)
		audittest.Execute(t, p.pool, `UPDATE tasks SET state = 'FAILED' WHERE task_id = $1`, id)
	}
	// Of some, Postgres has nothing but the event of their end. The result of one is to be recorded.
	ended := func(id string, age time.Duration) {
		audittest.Execute(t, p.pool, `INSERT INTO audit_log (time, ingested_at, tenant, actor_type, actor_id, action, resource_type, resource_id, outcome, task_id, job_id, src_topic, src_partition, src_offset, src_index)
			VALUES ($2, now(), 'acme', 'stage', 'workers@test-1', 'task.succeeded', 'task', $1, 'ok', $1, 'job', 'events', 0, 7, 0)`, id, time.Now().Add(-age))
	}
	p.end("gone-later")
	ended("gone-later", 0)
	ended("gone-00", 0) // it has a row
	ended("gone-long-ago", 60*24*time.Hour)
	ended("gone-ended-1", 0)
	ended("gone-ended-2", 3*24*time.Hour)
	left, err = r.Once(t.Context())
	require.NoError(t, err)
	require.True(t, left)
	require.Equal(t, strings.Join(lost, " "), p.again())
	require.Equal(t, strings.Join(append(slices.Clone(gone), append([]string{"gone-ended-1", "gone-ended-2"}, lost[:5]...)...), " "), p.lost())
	require.False(t, p.resolved())
	row("gone-later", "gone-ended-1", "gone-ended-2")
	for _, id := range []string{"gone-later", "gone-ended-1", "gone-ended-2"} {
		audittest.Execute(t, p.pool, `INSERT INTO results (tenant, task_id, state, attempt, input_tokens, output_tokens, finished_at) VALUES ('acme', $1, 'FAILED', 1, 0, 0, now())`, id)
		audittest.Execute(t, p.pool, `UPDATE tasks SET state = 'FAILED' WHERE task_id = $1`, id)
	}
	left, err = r.Once(t.Context())
	require.NoError(t, err)
	require.False(t, left)
	require.True(t, p.resolved())

	// What the recorder writes of the end of a task has everything that Postgres knew of it.
	require.NoError(t, p.log.Scan(t.Context(), stream.Results, func(rec *stream.Record) error {
		res, err := wire.DecodeResult(rec.Value, rec.Header(wire.HeaderContentType))
		require.NoError(t, err)
		if res.TaskID == "gone-00" {
			require.Equal(t, "job m https://example.com/hook low", strings.Join([]string{res.JobID, res.Model, res.Callback.URL, string(res.Priority)}, " "))
		}
		return nil
	}))
}

// A process at a time, and only while it lives.
func TestOneProcessResolvesAtATime(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.submit(stream.TasksNormal, "t1")
	p.finish("router", stream.TasksNormal)
	p.hole(stream.Results)
	conn, err := pgx.Connect(t.Context(), p.pool.Config().ConnString())
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "SELECT pg_advisory_lock($1)", pg.ResolverLock)
	require.NoError(t, err)
	r := resolve.NewSmall(p.deps(), 10)
	left, err := r.Once(t.Context())
	require.NoError(t, err)
	require.False(t, left)
	require.Empty(t, p.again())
	require.NoError(t, conn.Close(t.Context()))
	require.Eventually(t, func() bool {
		_, err := r.Once(t.Context())
		return err == nil && p.again() == "t1"
	}, testenv.Patience, 20*time.Millisecond)
}

// Records of another request may be under the id of a lost task, because the routers read and refused them, or
// because that request's process of the API knew nothing of the first. What runs again is what the id stands for; if
// its record is gone, the task ends.
func TestARecordOfAnotherRequestIsNotTheTask(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	other := func(id string) *task.Task {
		one := newTask(id)
		one.Input = task.Input(`{"messages":[{"role":"user","content":"something else"}]}`)
		return one
	}
	p.submit(stream.TasksNormal, "first", "last")
	for range 7 {
		p.put(stream.Unit{Messages: []stream.Message{p.message(stream.TasksNormal, other("first")), p.message(stream.TasksNormal, other("gone-00"))}})
	}
	p.put(stream.Unit{Messages: []stream.Message{p.message(stream.TasksHigh, other("last").Requeued())}})
	p.finish("router", stream.TasksNormal)
	p.finish("router", stream.TasksHigh)
	for _, id := range []string{"first", "last", "gone-00"} {
		audittest.Execute(t, p.pool, `INSERT INTO tasks (tenant, task_id, state, seq, submitted_at, updated_at, known_from, job_id, callback_url, fingerprint)
			VALUES ('acme', $1, 'RUNNING', 0, now(), now(), 2, 'job', 'https://example.com/hook', $2)`, id, newTask(id).Fingerprint().Bytes())
	}
	p.hole(stream.Results)
	for range 2 { // a task whose record is gone is not given up at the first look
		_, err := resolve.New(p.deps()).Once(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, "first last", p.again())
	require.NoError(t, p.log.Scan(t.Context(), stream.TasksNormal, func(r *stream.Record) error {
		if r.Header(resolve.HeaderRunAgain) != "" {
			again, err := wire.DecodeOwnTask(r.Value, r.Header(wire.HeaderContentType))
			require.NoError(t, err)
			require.Equal(t, newTask(again.ID).Fingerprint(), again.Fingerprint(), again.ID)
		}
		return nil
	}))
	require.Contains(t, p.lost(), "gone-00")
	require.NoError(t, p.log.Scan(t.Context(), stream.Results, func(r *stream.Record) error {
		res, err := wire.DecodeResult(r.Value, r.Header(wire.HeaderContentType))
		require.NoError(t, err)
		require.Equal(t, "job", res.JobID, "what Postgres knew of it")
		require.Equal(t, "https://example.com/hook", res.Callback.URL)
		return nil
	}))
}
