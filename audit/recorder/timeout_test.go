package recorder

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// slowSQL makes each new result take a millisecond, and each of tenant sloth half a second.
const slowSQL = `
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	PERFORM pg_sleep((SELECT count(*) * 0.001 + 0.5 * count(*) FILTER (WHERE tenant = 'sloth') FROM fresh)); RETURN NULL;
END $$;
CREATE TRIGGER slow AFTER INSERT ON results REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION slow()`

// withStatementTimeout returns a pool whose sessions have a timeout.
func withStatementTimeout(t *testing.T, at, timeout string) *pgxpool.Pool {
	t.Helper()
	u, err := url.Parse(at)
	require.NoError(t, err)
	q := u.Query()
	q.Set("statement_timeout", timeout)
	u.RawQuery = q.Encode()
	return audittest.PoolOn(t, u.String())
}

// A chunk that takes longer than Postgres or the recorder allows is written in pieces that do not, and what
// follows grows again. A single record that takes longer is written all the same.
func TestAChunkThatRunsIntoATimeoutIsWrittenInPieces(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		timeout string
		cfg     Config
	}{
		"that of Postgres": {"250ms", Config{}},
		"the recorder's":   {"0", Config{WriteTimeout: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := audittest.URL(t)
			admin := audittest.PoolOn(t, at)
			audittest.Execute(t, admin, slowSQL)
			pool := withStatementTimeout(t, at, c.timeout)
			reg := prometheus.NewRegistry()
			d := NewDirect(c.cfg, Deps{Pool: pool, Metrics: metrics.New(reg), Instance: "audit@test-1"})
			r := &rig{t: t, pool: pool, w: d.w}
			results := r.own("results", 0)
			ctx, cancel := context.WithTimeout(t.Context(), audittest.Patience)
			defer cancel()
			const n = 3000
			var all chunk
			for i := range n {
				all = append(all, results.result(t, audittest.NewStory(fmt.Sprintf("t%d", i)).Result(task.Success, "d1")))
			}
			require.NoError(t, r.w.record(ctx, all))
			require.Equal(t, n, audittest.One[int](t, admin, "SELECT count(*) FROM results"))
			for _, e := range all {
				require.True(t, e.rec.(*fakeRecord).isDone())
			}
			require.Less(t, r.w.pace.Rows(), n)
			require.Equal(t, 1.0, min(1, counter(t, reg, "batchyard_audit_chunks_total", "timed_out")))

			s := audittest.NewStory("slow")
			s.Task.Tenant = "sloth"
			require.NoError(t, r.w.record(ctx, chunk{results.result(t, s.Result(task.Success, "d1"))}))
			require.Equal(t, n+1, audittest.One[int](t, admin, "SELECT count(*) FROM results"))
			require.Zero(t, r.w.chunks.patience)

			audittest.Execute(t, admin, "DROP TRIGGER slow ON results")
			small := r.w.pace.Rows()
			for i := 0; r.w.pace.Rows() == small; i++ {
				require.Less(t, i, 1000)
				var more chunk
				for j := range small {
					more = append(more, results.result(t, audittest.NewStory(fmt.Sprintf("more-%d-%d", i, j)).Result(task.Success, "d1")))
				}
				require.NoError(t, r.w.record(ctx, more))
			}
			require.Greater(t, r.w.pace.Rows(), small)
		})
	}
}

// counter reads a counter with one label.
func counter(t testing.TB, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// While records wait and nothing is recorded, the stage is not ready and says why.
func TestARecorderThatStandsStillSaysSo(t *testing.T) {
	t.Parallel()
	pool, l := audittest.NewPool(t), audittest.OpenLog(t, 2)
	out := l.NewOutbox("test", 1000, 8<<20)
	reg := prometheus.NewRegistry()
	m := metrics.New(reg)
	r := New(Config{CheckpointDir: t.TempDir()}, Deps{Log: l, Pool: pool, Instance: "audit@one-1", Logger: audittest.Quiet(), Metrics: m})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, func() {}) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	submit := func(id string) {
		s := audittest.NewStory(id)
		acked := make(chan error, 1)
		require.NoError(t, out.Put(t.Context(), unitOf([]task.Event{s.Accepted()}, acked)))
		require.NoError(t, <-acked)
	}
	submit("t1")
	require.Eventually(t, func() bool { return audittest.One[int](t, pool, "SELECT count(*) FROM tasks") == 1 }, audittest.Patience, 20*time.Millisecond)
	board := waiting.NewBoard(time.Second, []waiting.Source{{Stage: "audit", Ask: r.Waiting}}, audittest.Quiet(), &m.Waiting)
	stall := func() *waiting.Stall {
		board.Look(time.Now())
		return board.Stall("audit")
	}
	require.Nil(t, stall())

	audittest.Execute(t, pool, "ALTER TABLE tasks RENAME TO away")
	submit("t2")
	require.Eventually(t, func() bool { return stall() != nil }, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, waiting.Postgres, stall().Reason)
	require.ErrorContains(t, stall(), "tasks")
	require.NotContains(t, stall().Brief(), "42P01")
	require.Equal(t, 1.0, gauge(t, reg, "batchyard_stage_stalled"))
	require.Greater(t, gauge(t, reg, "batchyard_audit_oldest_unrecorded_seconds"), 0.0)

	audittest.Execute(t, pool, "ALTER TABLE away RENAME TO tasks")
	require.Eventually(t, func() bool { return stall() == nil }, audittest.Patience, 20*time.Millisecond)
	require.Equal(t, 2, audittest.One[int](t, pool, "SELECT count(*) FROM tasks"))
	require.Zero(t, gauge(t, reg, "batchyard_stage_stalled"))
	require.NoError(t, out.Close(t.Context()))
}
