package router

import (
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// Kafka refuses a record for good: the same process reads the task again until what it becomes is taken.
func TestATaskIsReadAgainWhenWhatItBecameIsRefused(t *testing.T) {
	for _, where := range []string{stream.Assignments, stream.Events, stream.Results, stream.TasksParked, stream.DLQ} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			broker := testenv.Strict(t)
			y := newYardAt(t, stream.Config{Brokers: broker.Addrs, Partitions: 1})
			times := 0
			broker.Refuse(func(topic string, batch []byte) int16 {
				if strings.HasSuffix(topic, where) && strings.Contains(string(batch), "refused") && times < 2 {
					times++
					return testenv.InvalidRecord
				}
				return 0
			})
			y.beat(dev("d", 4, "m"))
			cfg := testConfig()
			tk := chat("refused", "m")
			switch where {
			case stream.Results:
				tk.Deadline = time.Now().Add(-time.Second)
			case stream.TasksParked:
				y.deps.Retention = func(string) time.Duration { return 400 * time.Millisecond } // it is written again before its record is deleted
				tk.NotBefore = time.Now().Add(time.Hour)
			}
			y.router(cfg, "router@test")
			if where == stream.DLQ {
				require.NoError(t, y.log.Produce(t.Context(), stream.Message{Topic: stream.TasksNormal, Key: "refused", Value: []byte("garbage")}))
			} else {
				y.produce(tk)
			}
			switch where {
			case stream.Results:
				y.until("the result", func() bool { return y.results["refused"] != nil })
			case stream.TasksParked:
				y.until("the parked task", func() bool { return len(y.events[task.TaskParked]) > 0 })
			case stream.DLQ:
				y.until("the dead letter", func() bool { return len(y.dead) > 0 })
			default:
				y.until("the assignment", y.all([]string{"refused"}))
			}
			y.committed(stream.TasksNormal)
			require.NoError(t, y.log.Stuck())
			require.Equal(t, 2, times)
		})
	}
}

// A device that no worker serves, or no batcher, gets no work: it would wait in Kafka while its credits
// expire and are granted again. Once there is one, it gets work at once.
func TestADeviceThatIsNotServedGetsNoWork(t *testing.T) {
	y := newYard(t, 3)
	rdb := testenv.RedisAt(t, y.redis.Addr())
	y.deps.Presence = store.NewPresence(rdb, store.Config{}, "t:", []string{stream.Assignments, stream.Batches}, y.log.PartitionOf, store.WithMetrics(y.deps.Metrics))
	y.beat(dev("d1", 2, "m"), dev("d2", 2, "m"))
	y.router(testConfig(), "router@test")
	ids := y.produce(many("task", 30, "m")...)
	y.until("the tasks to be read", func() bool { return len(y.events[task.TaskQueued]) == 30 })
	unserved := func(n float64) func() bool {
		return func() bool {
			var m dto.Metric
			require.NoError(t, y.deps.Metrics.Device.Unserved.Write(&m))
			return m.GetGauge().GetValue() == n
		}
	}
	require.Eventually(t, unserved(2), testenv.Patience, 10*time.Millisecond)
	all := []int{0, 1, 2}
	require.NoError(t, y.deps.Presence.Report(t.Context(), stream.Assignments, all)) // a batcher, but no worker
	y.beat(dev("d1", 3, "m"), dev("d2", 3, "m"))                                     // read at once, because the slots changed
	require.Eventually(t, func() bool {
		ds, err := y.deps.Registry.List(t.Context())
		return err == nil && ds[0].Slots == 3 && unserved(2)()
	}, testenv.Patience, 10*time.Millisecond)
	y.mu.Lock()
	require.Empty(t, y.assigned)
	y.mu.Unlock()
	require.NoError(t, y.deps.Presence.Report(t.Context(), stream.Batches, all))
	y.until("every task", y.all(ids))
	y.mu.Lock()
	defer y.mu.Unlock()
	for id, n := range y.assigned {
		require.Equal(t, 1, n, id)
	}
}
