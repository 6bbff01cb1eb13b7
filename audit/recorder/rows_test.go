package recorder

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

// TestRowsArriveInEveryMode: behind a pooler, the URL tells pgx not to ask for types. The same rows
// arrive, and nothing is refused.
func TestRowsArriveInEveryMode(t *testing.T) {
	t.Parallel()
	odd := slices.Repeat([]string{"", "plain", `q"uo"te`, `back\slash\`, `\"`, "{a,b}", "(c,d)", "NULL", " ", "é€😀", "'"}, 8)
	begin := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	var want []string
	modes := []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}
	for run := range 2 * len(modes) {
		mode, safeChunks := modes[run/2], run%2
		url := testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up)
		sep := "?"
		if strings.Contains(url, sep) {
			sep = "&"
		}
		r := newRig(t, audittest.PoolOn(t, url+sep+"default_query_exec_mode="+mode))
		r.w.chunks.safeChunks = safeChunks // inserted; otherwise copied
		events, results := r.own("events", 0), r.own("results", 0)
		var c chunk
		for i, text := range odd {
			s := &audittest.Story{Task: &task.Task{ID: fmt.Sprint("t", i, text), Tenant: "acme", Model: text, JobID: text, CustomID: text, Input: task.Input(`{}`)}, At: begin}
			s.Task.Normalize(begin)
			s.Task.TraceID = "trace"
			res := s.Result([]task.State{task.Success, task.Failed}[i%2], "d"+text)
			res.Labels = map[string]string{"a": text}
			if res.Error != nil {
				res.Error.Message = text + "\n\t\x7f"
			}
			res.Usage = task.Usage{InputTokens: 1 << 31, OutputTokens: int64(i)}
			if i%3 == 0 {
				res.StartedAt, res.Output = begin.Add(time.Microsecond), task.Input(fmt.Sprintf(`{"a": "\u00e9\\", "b":[%d ,null]}`, i))
			}
			c = append(c, events.events(t, s.Accepted(), s.Event(task.TaskAssigned, 1, "d"+text)))
			if i%4 > 0 {
				c = append(c, results.result(t, res))
			}
		}
		require.GreaterOrEqual(t, len(c)-len(odd), minRowsForCopy)
		r.record(c...)
		require.Empty(t, r.sent, mode)
		require.Zero(t, r.w.chunks.safeChunks)
		var got []string
		for _, sql := range []string{"SELECT to_jsonb(t)::text FROM tasks t ORDER BY task_id", "SELECT (to_jsonb(r) - 'recorded_at' || jsonb_build_object('output', output::text))::text FROM results r ORDER BY task_id"} {
			rows, err := r.pool.Query(t.Context(), sql)
			require.NoError(t, err)
			all, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err)
			got = append(got, all...)
		}
		require.Greater(t, len(got), len(odd))
		if want == nil {
			want = got
		}
		require.Equal(t, want, got, mode)
	}
}

// TestTypesThatWereRecreated: a database may be restored while connections stay. The recorder
// continues by itself, and does not blame a record.
func TestTypesThatWereRecreated(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := newRig(t, pool)
	events, results := r.own("events", 0), r.own("results", 0)
	say := func(id string) chunk {
		s := audittest.NewStory(id)
		return chunk{events.events(t, s.Accepted()), results.result(t, s.Result(task.Success, "d1"))}
	}
	r.record(say("t1")...)
	migration, err := os.ReadFile("../../migrations/sql/00002_tasks_and_results.sql")
	require.NoError(t, err)
	types := string(migration[strings.Index(string(migration), "CREATE TYPE"):strings.Index(string(migration), "-- A row for each job")])
	_, err = pool.Exec(t.Context(), "DROP TYPE batchyard_task_row, batchyard_result_row; "+types)
	require.NoError(t, err)
	r.record(say("t2")...)
	require.Empty(t, r.sent)
	require.Equal(t, 2, audittest.One[int](t, pool, "SELECT count(*) FROM results"))

	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), "DROP TYPE batchyard_task_row, batchyard_result_row")
	require.NoError(t, err)
	_, err = lookUpRowTypes(t.Context(), conn.Conn())
	require.ErrorContains(t, err, "batchyard migrate up")
}
