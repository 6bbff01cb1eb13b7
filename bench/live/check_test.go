package live

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
)

func TestCheckRequiresOneResultPerTask(t *testing.T) {
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	log, err := stream.Open(t.Context(), stream.Config{Brokers: []string{broker.Addr()}, Partitions: 2}, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	_, err = log.CreateTopics(t.Context())
	require.NoError(t, err)

	ph := newPhase(2)
	l := &load{p: &place{log: log}, asked: map[string]*phase{"a": ph, "b": ph}, sent: 2}
	answer := func(id string, state task.State) {
		m, err := records.ResultMessage(&task.Result{TaskID: id, Tenant: tenant, State: state, FinishedAt: time.Now()})
		require.NoError(t, err)
		require.NoError(t, log.Produce(t.Context(), m))
	}
	answer("a", task.Success)
	_, err = l.check(t.Context())
	require.ErrorContains(t, err, "b has 0 results")
	answer("b", task.Failed)
	failures, err := l.check(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, failures)
	answer("a", task.Success)
	_, err = l.check(t.Context())
	require.ErrorContains(t, err, "a has 2 results")
}
