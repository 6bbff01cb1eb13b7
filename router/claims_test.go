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

func take(t *testing.T, c *claims, items ...*decide.Item) []verdict {
	t.Helper()
	taken, err := c.take(t.Context(), items)
	require.NoError(t, err)
	return taken
}

func TestOneRecordSpeaksForATask(t *testing.T) {
	c, m := claimsOn(t)
	require.Equal(t, []verdict{claimed, claimed}, take(t, c, record("a", 1), record("b", 2)))
	require.Equal(t, []verdict{reclaimed, duplicate, claimed}, take(t, c, record("a", 1), record("b", 3), record("c", 4)), "the same record again is no duplicate, another record is")
	require.Equal(t, []verdict{claimed, duplicate}, take(t, c, record("d", 5), record("d", 6)), "two records of one task in one batch")
	require.Equal(t, []verdict{reclaimed, duplicate}, take(t, c, record("d", 5), record("d", 6)), "the same two, read again")
	again := record("a", 9)
	again.Task = again.Task.Requeued()
	require.Equal(t, []verdict{claimed}, take(t, c, again), "a requeued task is no duplicate")
	retried := record("a", 11)
	retried.Task.Progress = &task.Progress{Generation: 1}
	require.Equal(t, []verdict{claimed, duplicate}, take(t, c, retried, func() *decide.Item { r := *retried; r.Origin = record("a", 12).Origin; return &r }()), "a retry is no duplicate, a second record of it is")
	another := record("a", 13)
	another.Fingerprint[3] = 1
	require.Equal(t, []verdict{contested}, take(t, c, another), "another request under the same id")
	other := record("a", 10)
	other.Task.Tenant = "u"
	require.Equal(t, []verdict{claimed}, take(t, c, other), "another tenant's task is another task")

	for _, k := range m.Keys() {
		require.Positive(t, m.TTL(k), "every claim must expire: %s", k)
	}
	m.FlushAll()
	require.Equal(t, []verdict{claimed}, take(t, c, record("b", 3)), "a lost claim lets the second record through")
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
	require.Equal(t, []verdict{claimed}, take(t, at(10), record("a", 1)))
	require.Equal(t, []verdict{duplicate}, take(t, at(11), record("a", 2)), "a duplicate one epoch later")
	require.Equal(t, []verdict{reclaimed}, take(t, at(12), record("a", 1)), "the first record, read again after a crash")
	require.Equal(t, []verdict{duplicate}, take(t, at(12), record("a", 2)))
	another := record("a", 2)
	another.Fingerprint[0] = 1
	require.Equal(t, []verdict{contested}, take(t, at(12), another), "another request one epoch later")
	require.Equal(t, []verdict{claimed}, take(t, at(14), record("a", 3)), "the claim has expired")
}
