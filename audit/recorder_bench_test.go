package audit

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/testenv"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// lifeOf is what the stages write of a task that succeeds: seven rows and a result, as
// long as those of a run of examples/mixed.jsonl (466 bytes a row, 720 a result).
func lifeOf(s *story) ([]task.Event, *task.Result) {
	const device, batch = "sim-gpu-4", "019cb1e5-6c5f-7e3f-9d0a-3c8d9f0a5b1e"
	s.task.TraceID, s.task.Job = "3d1c7f19caa22739271fe2dc129bf1a2", "job-2024e0884f1db5526c1bf3e3"
	es := []task.Event{s.accepted(), s.event(task.TaskQueued, 0, ""), s.event(task.TaskAssigned, 1, device), s.event(task.BatchClosed, 1, device),
		s.event(task.AttemptStarted, 1, device), s.event(task.AttemptSucceeded, 1, device), s.event(task.TaskSucceeded, 1, device)}
	r := s.result(task.Success, device)
	r.Output = task.Input(answer)
	r.Usage = task.Usage{InputTokens: 12, OutputTokens: 34}
	r.AssignedAt, r.StartedAt = es[2].Time, es[4].Time
	took := 10*time.Millisecond + time.Duration(s.at.UnixMicro()%20_000)*time.Microsecond // they differ, as histograms have it
	r.Attempts[0].Duration, r.Attempts[0].Model, r.Attempts[0].Status = took.Milliseconds(), s.task.Model, 200
	es[1].SourceAddr = "kafka:tasks.normal/3@1234567"
	es[2].Detail = []byte(whyAssigned)
	es[3].Detail = []byte(`{"bytes":1200,"reason":"idle","tasks":4}`)
	es[5].Detail = []byte(`{"status":200}`)
	es[5].OutputSize, es[5].OutputSHA256 = int64(len(r.Output)), es[0].InputSHA256
	for _, i := range []int{2, 3, 5, 6} {
		es[i].Duration = time.Duration(i) * took / 4
	}
	for i := 3; i < len(es); i++ {
		es[i].Batch = batch
	}
	for _, i := range []int{5, 6} {
		es[i].TokensIn, es[i].TokensOut = r.Usage.InputTokens, r.Usage.OutputTokens
	}
	return es, r
}

const (
	answer = `{"id":"chatcmpl-019cb1e56c5f","object":"chat.completion","created":1772300000,"model":"demo-chat","choices":[{"index":0,"finish_reason":"stop",` +
		`"message":{"role":"assistant","content":"A lantern for boats is a light that is kept where others can see it from the water, in any weather."}}],` +
		`"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}`
	whyAssigned = `{"policy":"expected_finish","why":"sim-gpu-4 finishes first, in 15.3 ms","of":6,"candidates":[{"device_id":"sim-gpu-4","score":15.343,"unit":"ms","used":3,"slots":4,"limit":6},` +
		`{"device_id":"sim-gpu-3","score":15.405,"unit":"ms","used":5,"slots":4,"limit":6}],"out":{}}`
)

// BenchmarkRecorder is the whole stage, from the log to Postgres, with a backlog
// of whole lives of tasks: what it reaches when it was away. Beside it, in the
// same run, the rate of one row a statement.
//
// On real services: eval "$(scripts/services env)"; BATCHYARD_TEST_SERVICES=real go test …
func BenchmarkRecorder(b *testing.B) {
	env := testenv.Get(b)
	pool := newPool(b)
	l := newLogOf(b, env, env.Prefix(b), 12) // as many partitions as there are by default
	var spent time.Duration
	var theirs, ours float64 // processor time in microseconds
	total := 0
	single := singleRate(b, pool)
	for b.Loop() {
		b.StopTimer()
		const tasks = 120_000 // long against the time in which a recorder joins and its last chunk
		rows := backlog(b, l, tasks)
		have := settled(b, pool)
		b.StartTimer()
		begin := time.Now()
		theirs, ours = theirs-cpuOf(b, pool), ours-ownCPU(b)
		stop := startRecorder(b, l, pool, "bench-1")
		tick := time.NewTicker(20 * time.Millisecond) // looking costs, too
		for recorded(b, pool) < rows+total || settled(b, pool) < have+tasks {
			<-tick.C
		}
		spent += time.Since(begin)
		theirs, ours = theirs+cpuOf(b, pool), ours+ownCPU(b)
		tick.Stop()
		b.StopTimer()
		total += rows
		require.NoError(b, stop())
		b.StartTimer()
	}
	rate := float64(total) / spent.Seconds()
	b.ReportMetric(theirs/float64(total), "postgres-cpu-us/row")
	b.ReportMetric(ours/float64(total), "own-cpu-us/row")
	b.ReportMetric(rate, "rows/s")
	b.ReportMetric(single, "single-rows/s")
	b.ReportMetric(rate/single, "ratio")
}

// backlog writes the lives of n tasks to the log, as many at a time as pass the
// stages together, and returns how many rows they make.
func backlog(b *testing.B, l *stream.Log, n int) (rows int) {
	out := l.NewOutbox("bench", 10_000, 64<<20)
	var wg sync.WaitGroup
	const together = 500
	for range n / together {
		lives := make([][]task.Event, together)
		ends := make([]*task.Result, together)
		for i := range lives {
			s := newStory(task.NewID())
			s.at = time.Now()
			lives[i], ends[i] = lifeOf(s)
			rows += len(lives[i])
		}
		for step := range lives[0] {
			for i := range lives {
				var r *task.Result
				if step == len(lives[i])-1 {
					r = ends[i]
				}
				write(b, out, &wg, lives[i][step:step+1], r)
			}
		}
	}
	wg.Wait()
	require.NoError(b, out.Close(context.WithoutCancel(b.Context())))
	return rows
}

// settled counts results by what the recorder counts of them.
func settled(b *testing.B, pool *pgxpool.Pool) int {
	return one[int](b, pool, "SELECT coalesce(sum(tasks), 0)::int FROM rollup_usage")
}

// recorded counts rows by the chains, which costs nothing.
func recorded(b *testing.B, pool *pgxpool.Pool) int {
	return one[int](b, pool, "SELECT coalesce(sum(rows), 0)::int FROM audit_chains")
}

// BenchmarkRecorderLag is the time from an event to its row at light load.
func BenchmarkRecorderLag(b *testing.B) {
	env := testenv.Get(b)
	pool := newPool(b)
	l := newLog(b, env, env.Prefix(b))
	startRecorder(b, l, pool, "bench-1")
	out := l.NewOutbox("bench", 1000, 8<<20)
	var wg sync.WaitGroup
	var lags []time.Duration
	for b.Loop() {
		s := newStory(task.NewID())
		s.at = time.Now()
		events, r := lifeOf(s)
		begin := time.Now()
		write(b, out, &wg, events, r)
		for one[int](b, pool, "SELECT count(*) FROM audit_log WHERE tenant = 'acme' AND task_id = $1", s.task.ID) < len(events) {
		}
		lags = append(lags, time.Since(begin))
	}
	wg.Wait()
	slices.Sort(lags)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(lags[len(lags)*p/100].Microseconds())/1e3, fmt.Sprintf("p%d-ms", p))
	}
	require.NoError(b, out.Close(context.WithoutCancel(b.Context())))
}
