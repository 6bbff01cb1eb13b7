package workers

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// Kafka refuses a record for good: the same process runs the task again until it is taken.
func TestATaskRunsAgainWhenWhatItBecameIsRefused(t *testing.T) {
	for _, where := range []string{stream.Results, stream.Events, stream.TasksNormal} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			broker := testenv.Strict(t)
			y := newYardAt(t, broker.Addrs, fleet.Spec{ID: "d", Slots: 4})
			if where == stream.TasksNormal {
				y.fleet.Device("d").SetFault(fleet.Fault{Kind: fleet.Fail})
			}
			times := 0
			broker.Refuse(func(topic string, batch []byte) int16 {
				if strings.HasSuffix(topic, where) && strings.Contains(string(batch), "refused") && times < 2 {
					times++
					return testenv.InvalidRecord
				}
				return 0
			})
			y.workers(testConfig())
			y.send("d", chat("refused"))
			if where == stream.TasksNormal {
				require.Equal(t, 1, y.back("refused", 1).Requeues())
			} else {
				y.until("the result", func() bool { return len(y.results["refused"]) > 0 })
				require.Equal(t, task.Success, y.answers()["refused"][0].State)
			}
			y.committed()
			require.NoError(t, y.client.Stuck())
			require.Equal(t, 2, times)
			y.eventually("credits are given back", func() bool { return y.creditsUsed("d") == 0 })
		})
	}
}
