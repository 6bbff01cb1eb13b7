package recorder

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
)

// unitOf returns events to write.
func unitOf(events []task.Event, acked chan<- error) stream.Unit {
	return stream.Unit{Events: events, Acked: func(err error) { acked <- err }}
}

// Kafka deletes events and results under a stopped recorder: of partitions that it has recorded something
// of, and of others; and nothing is written afterwards that would show it. Each hole becomes a row of the
// chain in which it is, once, and with it a finding that no one can remove.
func TestAHoleBecomesARowOfItsChain(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]int{"nothing was recorded": 0, "something was recorded": 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, l := audittest.NewPool(t), audittest.OpenLog(t, 3)
			out := l.NewOutbox("test", 1000, 8<<20)
			dir := t.TempDir()
			reg := prometheus.NewRegistry()
			m := metrics.New(reg)
			run := func() func() error {
				return startRecorderWith(t, Config{CheckpointDir: dir}, Deps{Log: l, Pool: pool, Metrics: m, Instance: "audit@one-1"})
			}
			var wg sync.WaitGroup
			submit := func(from, to int) {
				for i := from; i < to; i++ {
					s := audittest.NewStory(fmt.Sprintf("t%d", i))
					write(t, out, &wg, []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, "")}, s.Result(task.Success, "d1"))
				}
				wg.Wait()
			}
			if before > 0 {
				stop := run()
				submit(0, before)
				awaitRows(t, pool, before)
				require.NoError(t, stop())
			}
			next := func(topic string, partition int) int64 {
				return audittest.One[int64](t, pool, "SELECT coalesce(max(next_offset), 0) FROM stream_offsets WHERE topic = $1 AND partition = $2 AND next_offset > 0", topic, partition)
			}
			submit(before, before+40)
			want := map[string]string{}
			var missed int64
			for _, topic := range []string{stream.Events, stream.Results} {
				for p, n := range audittest.DeleteRecords(t, l, topic) {
					if from := next(topic, p); n > from {
						want[fmt.Sprintf("%s/%d", topic, p)] = fmt.Sprintf("%d-%d", from, n-1)
						missed += n - from
					}
				}
			}
			require.NotEmpty(t, want)

			for range 2 { // once, however often the recorder starts
				stop := run()
				require.Eventually(t, func() bool {
					return audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action = 'audit.records_missed'") >= len(want)
				}, audittest.Patience, 20*time.Millisecond)
				require.NoError(t, stop())
			}
			got := map[string]string{}
			rows, err := pool.Query(t.Context(), `SELECT b.topic || '/' || b.partition, b.first_offset || '-' || b.last_offset FROM stream_breaks b
				JOIN audit_log a ON a.src_topic = b.topic AND a.src_partition = b.partition AND a.chain_seq = b.chain_seq - 1 AND a.action = 'audit.' || b.kind
				WHERE (a.detail->>'last_offset')::bigint = b.last_offset AND (a.detail->>'first_offset')::bigint = b.first_offset`)
			require.NoError(t, err)
			for rows.Next() {
				var at, offsets string
				require.NoError(t, rows.Scan(&at, &offsets))
				got[at] = offsets
			}
			require.NoError(t, rows.Err())
			require.Equal(t, want, got)
			require.Equal(t, len(want), audittest.One[int](t, pool, "SELECT count(*) FROM audit_log WHERE action = 'audit.records_missed'"))
			require.EqualValues(t, missed, counter(t, reg, "batchyard_audit_missed_records_total", ""))

			requireHoles := func(n int) {
				report := verifyWith(t, pool, dir)
				require.Len(t, report.Findings, n)
				for _, f := range report.Findings {
					require.Equal(t, verify.Unrecorded, f.Reason, f.Detail)
					require.Contains(t, f.Detail, "offsets "+fmt.Sprint(want[f.Chain()][0:1]))
				}
			}
			requireHoles(len(want))
			audittest.Execute(t, pool, "DELETE FROM stream_breaks") // to deny it
			requireHoles(len(want))

			stop := run() // and recording goes on
			submit(before+40, before+50)
			awaitRows(t, pool, before+10)
			require.NoError(t, stop())
			requireHoles(len(want))
			require.NoError(t, out.Close(t.Context()))
		})
	}
}

// A gap that another stage has found in its topic becomes a hole, too: with its row, a finding, and a
// search for the tasks that were lost.
func TestAGapOfAnotherStageBecomesAHole(t *testing.T) {
	t.Parallel()
	pool, l := audittest.NewPool(t), audittest.OpenLog(t, 2)
	require.NoError(t, l.Produce(t.Context(), stream.Message{Topic: stream.Assignments, Key: "d1", Value: []byte("x")}, stream.Message{Topic: stream.Assignments, Key: "d1", Value: []byte("y")}))
	out := l.NewOutbox("batcher", 1000, 8<<20)
	gapOf := &records.DeadLetters{Stage: "batcher", Instance: "batcher@one-1", Outbox: out, Logger: audittest.Quiet(), Metrics: &metrics.New(nil).Stream}
	group := stream.ConsumerConfig{Group: "batcher", Topic: stream.Assignments, OnGap: gapOf.Gap}
	consume := func(handle func([]*stream.Record)) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- l.Consume(ctx, group, func(_ context.Context, recs []*stream.Record) { handle(recs) }, nil)
		}()
		return func() { cancel(); require.NoError(t, <-done) }
	}
	read := make(chan *stream.Record, 10)
	stop := consume(func(recs []*stream.Record) {
		for _, rec := range recs {
			rec.Done()
			read <- rec
		}
	})
	<-read
	at := (<-read).Partition
	stop()
	require.NoError(t, l.Produce(t.Context(), stream.Message{Topic: stream.Assignments, Key: "d1", Value: []byte("z")}))
	audittest.DeleteRecords(t, l, stream.Assignments)
	stop = consume(func([]*stream.Record) {})
	dir := t.TempDir()
	stopRecorder := startRecorderWith(t, Config{CheckpointDir: dir}, Deps{Log: l, Pool: pool, Instance: "audit@one-1"})
	require.Eventually(t, func() bool { return audittest.One[int](t, pool, "SELECT count(*) FROM stream_breaks") == 1 }, audittest.Patience, 20*time.Millisecond)
	stop()
	require.Equal(t, fmt.Sprintf("records_missed assignments/%d 2-2 batcher@one-1", at),
		audittest.One[string](t, pool, "SELECT kind || ' ' || topic || '/' || partition || ' ' || first_offset || '-' || last_offset || ' ' || actor_id FROM stream_breaks"))
	require.NoError(t, stopRecorder())
	report := verifyWith(t, pool, dir)
	require.Len(t, report.Findings, 1)
	require.Equal(t, verify.Unrecorded, report.Findings[0].Reason)
	require.Contains(t, report.Findings[0].Detail, fmt.Sprintf("assignments/%d", at))
	require.NoError(t, out.Close(t.Context()))
}
