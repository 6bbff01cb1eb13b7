package router

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

func claimsOn(t *testing.T) (*claims, *miniredis.Miniredis) {
	m := miniredis.RunT(t)
	return &claims{rdb: redisClient(t, m.Addr()), prefix: "t:", ttl: time.Minute, now: time.Now}, m
}

func record(id string, offset int64) *item {
	return &item{task: &task.Task{Tenant: "t", ID: id}, rec: &stream.Record{Topic: stream.TasksNormal, Partition: 2, Offset: offset}}
}

func take(t *testing.T, c *claims, items ...*item) []bool {
	t.Helper()
	taken, err := c.take(t.Context(), items)
	require.NoError(t, err)
	return taken
}

func TestOneRecordSpeaksForATask(t *testing.T) {
	c, m := claimsOn(t)
	require.Equal(t, []bool{false, false}, take(t, c, record("a", 1), record("b", 2)))
	require.Equal(t, []bool{false, true, false}, take(t, c, record("a", 1), record("b", 3), record("c", 4)), "the same record again is no duplicate, another is")
	require.Equal(t, []bool{false, true}, take(t, c, record("d", 5), record("d", 6)), "twice in one chunk")
	require.Equal(t, []bool{false, true}, take(t, c, record("d", 5), record("d", 6)), "and read again")
	again := record("a", 9)
	again.task = again.task.Requeued()
	require.Equal(t, []bool{false}, take(t, c, again), "what we wrote again ourselves is no duplicate")
	other := record("a", 10)
	other.task.Tenant = "u"
	require.Equal(t, []bool{false}, take(t, c, other), "another tenant's task is another task")

	for _, k := range m.Keys() {
		require.Positive(t, m.TTL(k), "claims end: %s", k)
	}
	m.FlushAll()
	require.Equal(t, []bool{false}, take(t, c, record("b", 3)), "a lost claim lets the second record through")
	m.SetError("LOADING")
	_, err := c.take(t.Context(), []*item{record("a", 1)})
	require.ErrorContains(t, err, "claiming")
}

// A claim is honoured in the epoch after it was taken, and handed on by whoever
// meets it there, so that the record that has it is never taken for a duplicate
// of one that was dropped for its sake: both would be gone.
func TestAClaimOutlivesItsEpoch(t *testing.T) {
	m := miniredis.RunT(t)
	rdb := redisClient(t, m.Addr())
	at := func(epoch int) *claims {
		return &claims{rdb: rdb, prefix: "t:", ttl: time.Minute, now: func() time.Time { return time.Unix(int64(60*epoch+30), 0) }}
	}
	require.Equal(t, []bool{false}, take(t, at(10), record("a", 1)))
	require.Equal(t, []bool{true}, take(t, at(11), record("a", 2)), "a duplicate one epoch later")
	require.Equal(t, []bool{false}, take(t, at(12), record("a", 1)), "the first record, read again after a crash")
	require.Equal(t, []bool{true}, take(t, at(12), record("a", 2)))
	require.Equal(t, []bool{false}, take(t, at(14), record("a", 3)), "the claim has ended")
}
