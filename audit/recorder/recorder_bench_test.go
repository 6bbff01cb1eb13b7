package recorder

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// BenchmarkRecorder is the whole stage, from the log to Postgres, with a backlog of complete lives
// of tasks, and, in the same run, the rate of inserting rows one by one.
//
// On real services: eval "$(scripts/services env)"; BATCHYARD_TEST_SERVICES=real go test …
func BenchmarkRecorder(b *testing.B) {
	pool := audittest.NewPool(b)
	l := audittest.OpenLog(b, 12) // the default number of partitions
	var spent time.Duration
	var theirs, ours float64 // processor time in microseconds
	total := 0
	single := singleRate(b, pool)
	for b.Loop() {
		b.StopTimer()
		const tasks = 120_000 // long compared to the time in which a recorder joins, and to its last chunk
		rows := backlog(b, l, tasks)
		have := settled(b, pool)
		b.StartTimer()
		begin := time.Now()
		theirs, ours = theirs-audittest.CPU(b, pool), ours-audittest.OwnCPU(b)
		stop := startRecorder(b, Deps{Log: l, Pool: pool, Instance: "audit@bench-1"})
		tick := time.NewTicker(20 * time.Millisecond) // polling costs, too
		for recorded(b, pool) < rows+total || settled(b, pool) < have+tasks {
			<-tick.C
		}
		spent += time.Since(begin)
		theirs, ours = theirs+audittest.CPU(b, pool), ours+audittest.OwnCPU(b)
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

// backlog writes the lives of n tasks to the log, as many at a time as pass the stages together,
// and returns the number of their events.
func backlog(b *testing.B, l *stream.Client, n int) (rows int) {
	out := l.NewOutbox("bench", 10_000, 64<<20)
	var wg sync.WaitGroup
	const together = 500
	for range n / together {
		lives := make([][]task.Event, together)
		ends := make([]*task.Result, together)
		for i := range lives {
			s := audittest.NewStory(task.NewID())
			s.At = time.Now()
			lives[i], ends[i] = s.Life()
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

// settled counts results by the rollups.
func settled(b *testing.B, pool *pgxpool.Pool) int {
	return audittest.One[int](b, pool, "SELECT coalesce(sum(tasks), 0)::int FROM rollup_usage")
}

// recorded counts rows by the chains, which costs nothing.
func recorded(b *testing.B, pool *pgxpool.Pool) int {
	return audittest.One[int](b, pool, "SELECT coalesce(sum(rows), 0)::int FROM audit_chains")
}

// BenchmarkRecorderLag is the time from an event to its row at light load.
func BenchmarkRecorderLag(b *testing.B) {
	pool := audittest.NewPool(b)
	l := audittest.OpenLog(b, 3)
	startRecorder(b, Deps{Log: l, Pool: pool, Instance: "audit@bench-1"})
	out := l.NewOutbox("bench", 1000, 8<<20)
	var wg sync.WaitGroup
	var lags []time.Duration
	for b.Loop() {
		s := audittest.NewStory(task.NewID())
		s.At = time.Now()
		events, r := s.Life()
		begin := time.Now()
		write(b, out, &wg, events, r)
		for audittest.One[int](b, pool, "SELECT count(*) FROM audit_log WHERE tenant = 'acme' AND task_id = $1", s.Task.ID) < len(events) {
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
