package stream

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTopicsAreDeleted(t *testing.T) {
	t.Parallel()
	other := open(t, testConfig(t))
	cfg := testConfig(t)
	l := open(t, cfg)
	require.NoError(t, l.DeleteTopics(until(t)))
	require.ErrorContains(t, l.CheckTopics(until(t)), cfg.TopicPrefix+"tasks.high, ")
	require.NoError(t, l.DeleteTopics(until(t)), "they are not there, and that is what was wanted")
	require.NoError(t, other.CheckTopics(until(t)), "those of others stay")
}
