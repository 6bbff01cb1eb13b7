package router

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func claimsOn(t *testing.T) (*claims, *miniredis.Miniredis) {
	m := miniredis.RunT(t)
	return &claims{rdb: testenv.RedisAt(t, m.Addr()), prefix: "t:", ttl: time.Minute, now: time.Now}, m
}

func record(id string, offset int64) *decide.Item {
	return &decide.Item{Task: &task.Task{Tenant: "t", ID: id}, Origin: newOrigin(&stream.Record{Topic: stream.TasksNormal, Partition: 2, Offset: offset})}
}

func take(t *testing.T, c *claims, items ...*decide.Item) []bool {
	t.Helper()
	taken, err := c.take(t.Context(), items)
	require.NoError(t, err)
	return taken
}

func TestOneRecordSpeaksForATask(t *testing.T) {
	c, m := claimsOn(t)
	require.Equal(t, []bool{false, false}, take(t, c, record("a", 1), record("b", 2)))
	require.Equal(t, []bool{false, true, false}, take(t, c, record("a", 1), record("b", 3), record("c", 4)), "the same record again is no duplicate, another record is")
	require.Equal(t, []bool{false, true}, take(t, c, record("d", 5), record("d", 6)), "two records of one task in one batch")
	require.Equal(t, []bool{false, true}, take(t, c, record("d", 5), record("d", 6)), "the same two, read again")
	again := record("a", 9)
	again.Task = again.Task.Requeued()
	require.Equal(t, []bool{false}, take(t, c, again), "a requeued task is no duplicate")
	other := record("a", 10)
	other.Task.Tenant = "u"
	require.Equal(t, []bool{false}, take(t, c, other), "another tenant's task is another task")

	for _, k := range m.Keys() {
		require.Positive(t, m.TTL(k), "every claim must expire: %s", k)
	}
	m.FlushAll()
	require.Equal(t, []bool{false}, take(t, c, record("b", 3)), "a lost claim lets the second record through")
	m.SetError("LOADING")
	_, err := c.take(t.Context(), []*decide.Item{record("a", 1)})
	require.ErrorContains(t, err, "claiming")
}

// A claim counts in the epoch after it was taken, and is carried over when another record meets it
// there. Otherwise its record could later be taken for a duplicate of one that was dropped because of
// it, and the task would be lost.
func TestAClaimOutlivesItsEpoch(t *testing.T) {
	m := miniredis.RunT(t)
	rdb := testenv.RedisAt(t, m.Addr())
	at := func(epoch int) *claims {
		return &claims{rdb: rdb, prefix: "t:", ttl: time.Minute, now: func() time.Time { return time.Unix(int64(60*epoch+30), 0) }}
	}
	require.Equal(t, []bool{false}, take(t, at(10), record("a", 1)))
	require.Equal(t, []bool{true}, take(t, at(11), record("a", 2)), "a duplicate one epoch later")
	require.Equal(t, []bool{false}, take(t, at(12), record("a", 1)), "the first record, read again after a crash")
	require.Equal(t, []bool{true}, take(t, at(12), record("a", 2)))
	require.Equal(t, []bool{false}, take(t, at(14), record("a", 3)), "the claim has expired")
}
