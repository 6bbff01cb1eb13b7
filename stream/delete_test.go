package stream

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDeleteTopics(t *testing.T) {
	t.Parallel()
	other := open(t, testConfig(t))
	cfg := testConfig(t)
	cl := open(t, cfg)
	require.NoError(t, cl.DeleteTopics(until(t)))
	require.ErrorContains(t, cl.CheckTopics(until(t)), cfg.TopicPrefix+"tasks.high, ")
	require.NoError(t, cl.DeleteTopics(until(t)), "missing topics are not an error")
	require.NoError(t, other.CheckTopics(until(t)), "other installations' topics stay")
}
