package api

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// The API on the real store: what it answers while Postgres has not heard of a
// task, once it has, and while it is away.
func TestOnPostgres(t *testing.T) {
	url := testenv.Get(t).DatabaseFrom(t, "api", migrations.Up)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool, err := pgxpool.New(ctx, url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	store := status.New(status.Config{}, status.Deps{Pool: pool, Metrics: metrics.New(nil)})
	t.Cleanup(store.Close)
	b := start(t, Config{}, func(d *Deps) { d.Store = store })

	b.do(t, "GET", "/v1/tasks/a", "").problem(t, 404)
	b.do(t, "GET", "/v1/tasks/a/events", "").problem(t, 404)
	b.do(t, "GET", "/v1/jobs/j", "").problem(t, 404)
	b.do(t, "GET", "/v1/tasks?cursor=junk", "").problem(t, 422)
	require.JSONEq(t, `{"tasks":[]}`, b.do(t, "GET", "/v1/tasks", "").body)
	require.Empty(t, b.do(t, "GET", "/v1/jobs/j/results", "").body)

	require.Equal(t, http.StatusAccepted, b.do(t, "POST", "/v1/tasks", oneTask).status)
	var st Status
	b.do(t, "GET", "/v1/tasks/a?wait=100ms", "").into(t, &st)
	require.Equal(t, task.Pending, st.State)

	_, err = pool.Exec(ctx, `INSERT INTO tasks (tenant, task_id, state, seq, submitted_at, updated_at, known_from, job_id) VALUES
		('default', 'a', 'RUNNING', 12, now(), now(), 1, 'j'), ('default', 'b', 'PENDING', 0, now(), now(), 1, 'j'), ('acme', 'a', 'FAILED', 2147483647, now(), now(), 1, 'j')`)
	require.NoError(t, err)
	_, err = pool.Exec(ctx, `INSERT INTO jobs (tenant, job_id, submitted_at) VALUES ('default', 'j', '2026-11-21T00:00:00Z'), ('acme', 'j', now())`)
	require.NoError(t, err)
	b.do(t, "GET", "/v1/tasks/a", "").into(t, &st)
	require.Equal(t, task.Running, st.State)
	var page List
	seen := map[string]bool{}
	for path := "/v1/tasks?limit=1"; ; path = "/v1/tasks?limit=1&cursor=" + page.Next {
		page = List{}
		b.do(t, "GET", path, "").into(t, &page)
		for _, s := range page.Tasks {
			seen[s.Tenant+"/"+s.ID] = true
		}
		if page.Next == "" {
			break
		}
	}
	require.Equal(t, map[string]bool{"default/a": true, "default/b": true}, seen)
	job := `{"job_id":"j","tenant":"default","state":"RUNNING","total":2,"known":2,"done":0,"tasks":{"RUNNING":1,"PENDING":1},"usage":{"input_tokens":0,"output_tokens":0},"submitted_at":"2026-11-21T00:00:00Z"}`
	require.JSONEq(t, job, b.do(t, "GET", "/v1/jobs/j", "").body)
	require.JSONEq(t, `{"jobs":[`+job+`]}`, b.do(t, "GET", "/v1/jobs", "").body)
	require.Equal(t, 409, b.do(t, "POST", "/v1/tasks/a/cancel", "", tenantHeader, "acme").status)

	pool.Close()
	b.do(t, "GET", "/v1/tasks", "").problem(t, 503)
	b.do(t, "GET", "/v1/tasks/b", "").problem(t, 503)
	require.Equal(t, http.StatusOK, b.do(t, "GET", "/v1/tasks/a", "").status, "this process took it in")
	require.Equal(t, http.StatusAccepted, b.do(t, "POST", "/v1/tasks", `{"model":"m","input":{}}`).status, "ingest goes on")
}
