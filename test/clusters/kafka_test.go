package clusters

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// TestNothingIsLostWhileBrokersAreKilled kills one broker after another, each of which comes back, while
// tasks run. Topics have three replicas, two of which must be in sync. Each task has one result.
func TestNothingIsLostWhileBrokersAreKilled(t *testing.T) {
	c := Start(t, "kafka")
	services := harness.Get(t, harness.Shared)
	in := harness.Bare(t, services, map[string]any{
		"kafka.brokers": strings.Split(c.Addrs("kafka", 3), ","), "kafka.replication": 3, "kafka.request_timeout": "10s", "kafka.dial_timeout": "10s", "kafka.session_timeout": "10s",
	})
	in.CreateTopics(t)
	in.Fleet(t, fleet.Spec{ID: "d1", Slots: 16, ServiceTime: 10 * time.Millisecond}, fleet.Spec{ID: "d2", Slots: 16, ServiceTime: 10 * time.Millisecond})
	a, b := in.Process(t, "serve"), in.Process(t, "serve")
	var all []string
	for round, broker := range []string{"kafka-2", "kafka-1", "kafka-3", "kafka-2"} {
		for i := range 4 {
			batch, names := harness.Chats(fmt.Sprintf("r%d-%d-", round, i), 500)
			submit(t, a.API(), batch)
			all = append(all, names...)
		}
		c.Do(t, "kill", broker)
		for i := range 2 {
			batch, names := harness.Chats(fmt.Sprintf("k%d-%d-", round, i), 500)
			submit(t, b.API(), batch)
			all = append(all, names...)
		}
		c.Do(t, "start", broker)
		awaitSync(t, c, in)
	}
	in.Await(t, all, 5*time.Minute)
	require.Equal(t, int64(len(all)), harness.SQL[int64](t, in, "SELECT count(*) FROM results WHERE state = 'SUCCESS'"))
	require.Zero(t, a.Term(t))
	require.Zero(t, b.Term(t))
	ledger := in.Begin(t, nil, "ledger", "check", "--settled")
	require.Zero(t, ledger.Wait(t, 2*time.Minute), ledger.Output())
}

// submit submits tasks until they are accepted: while a broker is gone, Kafka may not answer in time.
func submit(t testing.TB, api *harness.API, tasks []*task.Task) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, "the tasks are accepted", func() bool {
		answer, err := api.Try(t.Context(), "POST", "/v1/tasks", tasks)
		return err == nil && answer.Status == 202
	})
}

// awaitSync waits until every partition of the installation has three in-sync replicas.
func awaitSync(t testing.TB, c *Cluster, in *harness.Installation) {
	t.Helper()
	kafka, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(c.Addrs("kafka", 3), ",")...))
	require.NoError(t, err)
	defer kafka.Close()
	harness.Eventually(t, 2*time.Minute, "all replicas are in sync", func() bool {
		meta, err := kmsg.NewPtrMetadataRequest().RequestWith(t.Context(), kafka)
		if err != nil || len(meta.Brokers) < 3 {
			return false
		}
		for _, topic := range meta.Topics {
			for _, p := range topic.Partitions {
				if topic.Topic != nil && strings.HasPrefix(*topic.Topic, in.TopicPrefix) && len(p.ISR) < 3 {
					return false
				}
			}
		}
		return true
	})
}
