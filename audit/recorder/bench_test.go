package recorder

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
)

// BenchmarkRecord records the complete lives of tasks, seven events and a result each, in chunks of
// the size that a recorder uses behind a backlog, and compares with inserting the same audit rows
// one by one.
func BenchmarkRecord(b *testing.B) {
	r := newRig(b, audittest.NewPool(b))
	events, results := r.own("events", 0), r.own("results", 0)
	const tasks = 2500
	chunkOf := func(n int) (c chunk, rows int) {
		for i := range tasks {
			s := audittest.NewStory(fmt.Sprintf("b%d-%d-%d", b.N, n, i))
			s.Task.ID = task.NewID()
			es, end := s.Life()
			c = append(c, events.events(b, es...), results.result(b, end))
			rows += len(es)
		}
		return c, rows
	}
	c, _ := chunkOf(-1) // warms up plans and partitions
	r.record(c...)

	single := singleRate(b, r.pool)
	var spent time.Duration
	total, n := 0, 0
	cpu := audittest.CPU(b, r.pool)
	for b.Loop() {
		b.StopTimer()
		c, rows := chunkOf(n)
		n++
		b.StartTimer()
		start := time.Now()
		r.record(c...)
		spent += time.Since(start)
		total += rows
	}
	rate := float64(total) / spent.Seconds()
	b.ReportMetric((audittest.CPU(b, r.pool)-cpu)/float64(total), "postgres-cpu-us/row")
	b.ReportMetric(rate, "rows/s")
	b.ReportMetric(single, "single-rows/s")
	b.ReportMetric(rate/single, "ratio")
	b.ReportMetric(float64(total)/7/spent.Seconds(), "tasks/s")
}

// BenchmarkDecode decodes records of about a hundred events, from complete lives of tasks.
func BenchmarkDecode(b *testing.B) {
	var es []task.Event
	for range 15 {
		life, _ := audittest.NewStory(task.NewID()).Life()
		es = append(es, life...)
	}
	frame, err := wire.EncodeFrame(wire.FrameEvents, es)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		e := &entry{}
		e.decode(frame)
	}
	b.ReportMetric(float64(b.N*len(es))/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(es)), "ns/event")
}

// singleRate returns how many rows a second one connection inserts, one per statement.
func singleRate(b *testing.B, pool *pgxpool.Pool) float64 {
	begin := time.Now()
	n := 0
	for i := range 300 {
		es, _ := audittest.NewStory(fmt.Sprintf("single-%d", i)).Life()
		for i := range es {
			v := &es[i]
			_, err := pool.Exec(b.Context(), `INSERT INTO audit_log (time, tenant, actor_type, actor_id, action, outcome, resource_type, resource_id, task_id, job_id,
				device_id, attempt, trace_id, model, src_topic, src_partition, src_offset, src_index) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'events', 0, 0, 0)`,
				v.Time, v.Tenant, v.ActorType, v.ActorID, v.Action, v.Outcome, v.ResourceType, v.ResourceID, v.TaskID, v.JobID, v.DeviceID, v.Attempt, v.TraceID, v.Model)
			require.NoError(b, err)
			n++
		}
	}
	return float64(n) / time.Since(begin).Seconds()
}
