package router

import (
	"fmt"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/testenv"
)

// smallWindow has room for 40 tasks, and for 20 of a single queue.
func smallWindow() Config {
	cfg := testConfig()
	cfg.MaxPendingTasks = 64
	return cfg
}

// alike returns tasks of normal priority.
func alike(prefix string, n int, model string) []*task.Task {
	out := make([]*task.Task, n)
	for i := range out {
		out[i] = chat(fmt.Sprint(prefix, "-", i), model)
	}
	return out
}

// A request was set aside, and another one under its id got into the window. When it is recalled, Postgres
// decides whose the id is, even if it says so only then: one of the two runs, and the other is a dead letter.
func TestTwoRequestsUnderOneIDWhileOneIsSetAside(t *testing.T) {
	for name, mine := range map[string]int{"the one that was set aside": 0, "the one in the window": 1} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, 1)
			known := &away{}
			y.deps.Known = known
			y.mu.Lock()
			y.hold = true
			y.mu.Unlock()
			y.beat(dev("busy", 1, "m"))
			y.router(smallWindow(), "router@test")
			y.produce(alike("full", 20, "m")...)
			y.until("a full device", func() bool { return len(y.assigned) > 0 })
			backlog := y.produce(alike("backlog", 100, "none")...)
			requests := []*task.Task{chat("same", "none"), chat("same", "m")}
			requests[1].Level = task.MaxLevel // so that it is read into the window
			y.produce(requests...)
			y.until("the second in the window", func() bool {
				queued := y.events[task.TaskQueued]
				return len(queued) > 0 && queued[len(queued)-1] == "same"
			})
			requests[mine].Normalize(time.Now())
			known.now.Store(&knows{"same": {Fingerprint: requests[mine].Fingerprint(), State: task.Pending}})
			y.beat(dev("idle", 200, "none"))
			y.until("the dead letter of the other", func() bool { return len(y.dead) == 1 })
			y.mu.Lock()
			require.Equal(t, int64(121-mine), offsetOf(y.dead[0]))
			require.Equal(t, records.ReasonIDReused, y.dead[0].Header(records.HeaderDLQReason))
			y.hold = false
			require.NoError(t, y.finish())
			y.mu.Unlock()
			y.until("every task", y.all(append(backlog, "same")))
			y.committed(stream.TasksNormal)
			y.mu.Lock()
			defer y.mu.Unlock()
			for id, n := range y.assigned {
				require.Equal(t, 1, n, id)
			}
		})
	}
}

// Tasks were set aside, and Kafka deletes their records before they are recalled: that becomes an event, from
// which the recorder finds out what was lost. Nothing waits for them.
func TestRecordsThatWereSetAsideAreDeleted(t *testing.T) {
	y := newYard(t, 1)
	y.router(smallWindow(), "router@test")
	y.produce(alike("task", 200, "m")...)
	y.until("a full window", func() bool { return len(y.events[task.TaskQueued]) >= 20 })
	require.Eventually(t, func() bool {
		var m dto.Metric
		require.NoError(t, y.deps.Metrics.Router.Aside.WithLabelValues(stream.TasksNormal).Write(&m))
		return m.GetGauge().GetValue() > 120
	}, testenv.Patience, 20*time.Millisecond)
	audittest.DeleteRecordsAt(t, testenv.Brokers(t), y.log, stream.TasksNormal)
	y.produce(chat("last", "m"))
	y.beat(dev("d", 10, "m"))
	y.until("the event of what was deleted", func() bool { return len(y.events[task.RecordsMissed]) > 0 })
	y.until("what came afterwards", y.all([]string{"last"}))
	y.committed(stream.TasksNormal)
	y.mu.Lock()
	defer y.mu.Unlock()
	require.Equal(t, []string{stream.TasksNormal + "/0"}, y.events[task.RecordsMissed], "once for all of them")
	require.Greater(t, len(y.assigned), 20, "what was in the window runs")
	require.Less(t, len(y.assigned), 100)
	require.Empty(t, y.dead)
}
