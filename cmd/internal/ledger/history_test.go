package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// history is an installation in which the test acts as the stages, except for the recorder.
type history struct {
	t    *testing.T
	log  *stream.Client
	out  *stream.Outbox
	pool *pgxpool.Pool
	at   time.Time
}

func newHistory(t *testing.T) *history {
	t.Helper()
	env := testenv.Get(t)
	log, err := stream.Open(t.Context(), stream.Config{Brokers: env.Brokers, TopicPrefix: env.Prefix(t), Partitions: 3,
		HeartbeatInterval: 100 * time.Millisecond, CommitInterval: 20 * time.Millisecond}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	_, err = log.CreateTopics(t.Context())
	require.NoError(t, err)
	pool, err := pgxpool.New(t.Context(), env.DatabaseFrom(t, "batchyard schema", migrations.Up))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	h := &history{t: t, log: log, pool: pool, out: log.NewOutbox("test", 10_000, 64<<20), at: time.Now().UTC().Truncate(time.Microsecond)}
	t.Cleanup(func() { _ = h.out.Close(context.Background()) })
	return h
}

// put writes a unit and waits for the acknowledgement.
func (h *history) put(u stream.Unit) {
	h.t.Helper()
	acked := make(chan error, 1)
	u.Acked = func(err error) { acked <- err }
	require.NoError(h.t, h.out.Put(h.t.Context(), u))
	require.NoError(h.t, <-acked)
}

func newTask(id string) *task.Task {
	t := &task.Task{ID: id, Tenant: "acme", Model: "m", Input: task.Input(`{"messages":[]}`)}
	t.Normalize(time.Now())
	return t
}

func (h *history) message(topic string, t *task.Task) stream.Message {
	m, err := records.TaskMessage(topic, t, stream.Header{Key: records.HeaderAccepted, Value: []byte("1")})
	require.NoError(h.t, err)
	return m
}

// submit writes tasks as the producer does.
func (h *history) submit(ids ...string) {
	h.t.Helper()
	var u stream.Unit
	for _, id := range ids {
		t := newTask(id)
		u.Messages = append(u.Messages, h.message(stream.TasksNormal, t))
		u.Events = append(u.Events, task.Accepted(t, task.Origin{Actor: "acme", Addr: "203.0.113.7:1"}, h.at))
	}
	h.put(u)
}

// end writes results as the workers do. Results of a repeated id differ in their time.
func (h *history) end(state task.State, ids ...string) {
	h.t.Helper()
	var u stream.Unit
	for i, id := range ids {
		t := newTask(id)
		t.Callback = &task.Callback{URL: "https://example.com/hook"}
		r := task.NewResult(t, state, h.at.Add(time.Duration(i)*time.Second))
		if state == task.Success {
			r.Output, r.Status = task.Input(`{"a":1}`), 200
		}
		m, err := records.ResultMessage(r)
		require.NoError(h.t, err)
		u.Messages = append(u.Messages, m)
		e := task.NewEvent(task.TaskSucceeded, t, "workers@test-1", h.at)
		u.Events = append(u.Events, e)
	}
	h.put(u)
}

// missRest acts as a recorder that finds all records that it has not recorded yet deleted.
func (h *history) missRest(topic string) {
	h.t.Helper()
	stands, err := h.log.Offsets(h.t.Context(), "", topic)
	require.NoError(h.t, err)
	for _, s := range stands {
		var next int64
		require.NoError(h.t, h.pool.QueryRow(h.t.Context(), "SELECT coalesce((SELECT next_offset FROM stream_offsets WHERE topic = $1 AND partition = $2), 0)", topic, s.Partition).Scan(&next))
		if next >= s.End {
			continue
		}
		h.sql(fmt.Sprintf(`INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id)
			VALUES ('%s', %d, 'records_missed', 1000, %d, %d, now(), 'audit@test')`, topic, s.Partition, next, s.End-1))
		h.sql(fmt.Sprintf("UPDATE stream_offsets SET next_offset = %d WHERE topic = '%s' AND partition = %d", s.End, topic, s.Partition))
	}
}

// bury writes a record to the dead-letter topic as a stage does.
func (h *history) bury(r *stream.Record) {
	h.t.Helper()
	h.put(stream.Unit{Messages: []stream.Message{records.DeadLetter(r, "router", "invalid", fmt.Errorf("it is broken"))},
		Events: []task.Event{{
			Time: h.at, Action: task.RecordDeadLettered, Outcome: task.OutcomeRefused, Tenant: task.DefaultTenant, ActorType: task.ActorStage,
			ActorID: "router@test-1", SourceAddr: "kafka:" + r.Position(), ResourceType: "record", ResourceID: r.Position(), ErrorClass: task.ClassInvalid,
		}}})
}

// finish acts as a stage that finishes all records of a topic except those for which keep
// is true, and commits.
func (h *history) finish(stage, topic string, keep func(*stream.Record) bool) {
	h.t.Helper()
	stands, err := h.log.Offsets(h.t.Context(), stage, topic)
	require.NoError(h.t, err)
	var total int64
	for _, s := range stands {
		for at := s.Committed(); at < s.End; at++ {
			if s.Unfinished(at) {
				total++
			}
		}
	}
	if total == 0 {
		return
	}
	ctx, stop := context.WithTimeout(h.t.Context(), testenv.Patience)
	defer stop()
	var mu sync.Mutex
	var read int64
	all := make(chan struct{})
	require.NoError(h.t, h.log.Consume(ctx, stream.ConsumerConfig{Group: stage, Topic: topic, DrainTimeout: 200 * time.Millisecond}, func(_ context.Context, recs []*stream.Record) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range recs {
			if keep == nil || !keep(r) {
				r.Done()
			}
			if read++; read == total {
				close(all)
			}
		}
	}, func() { go func() { <-all; stop() }() }))
}

// record runs the recorder until Postgres holds everything in results and events.
func (h *history) record() {
	h.t.Helper()
	h.recordUntil(func(ctx context.Context) {
		require.NoError(h.t, awaitRecorder(ctx, h.log, h.pool, Options{Wait: testenv.Patience}.withDefaults()))
	})
}

// recordUntil runs a recorder until a function returns.
func (h *history) recordUntil(done func(context.Context)) {
	h.t.Helper()
	ctx, stop := context.WithTimeout(h.t.Context(), testenv.Patience)
	defer stop()
	rec := recorder.New(recorder.Config{CheckpointDir: h.t.TempDir()}, recorder.Deps{Log: h.log, Pool: h.pool, Logger: slog.New(slog.DiscardHandler), Metrics: metrics.New(nil), Instance: "audit@test-1"})
	ended := make(chan error, 1)
	go func() { ended <- rec.Run(ctx, func() {}) }()
	done(ctx)
	stop()
	require.NoError(h.t, <-ended)
}

func (h *history) sql(text string, args ...any) {
	h.t.Helper()
	tag, err := h.pool.Exec(h.t.Context(), text, args...)
	require.NoError(h.t, err)
	require.Positive(h.t, tag.RowsAffected(), "%s must change a row", text)
}

func (h *history) check(o Options) *Report {
	h.t.Helper()
	o.Dir = h.t.TempDir()
	r, err := Check(h.t.Context(), h.log, h.pool, o)
	require.NoError(h.t, err)
	require.Equal(h.t, r.Accepted, r.Terminal+r.InFlight+r.Dead+r.Missing, "the account of %+v", r)
	return r
}

// kinds returns the tasks or positions of the problems, by kind.
func kinds(r *Report) map[Kind]string {
	out := map[Kind]string{}
	for _, p := range r.Problems {
		about := p.TaskID
		if about == "" {
			about = p.At
		}
		if out[p.Kind] != "" {
			about = out[p.Kind] + " " + about
		}
		out[p.Kind] = about
	}
	return out
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%03d", prefix, i)
	}
	return out
}
