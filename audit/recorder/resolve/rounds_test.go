package resolve

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestANewHoleIsNotLeftWaitingForAnOldOne: while tasks of an old hole are underway, passes become rarer, but
// a task that is lost in a new hole does not wait for that.
func TestANewHoleIsNotLeftWaitingForAnOldOne(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	r := newRounds(now, time.Hour)
	for _, seconds := range []int{10, 20, 40, 80, 160, 320, 600, 600} {
		want := time.Duration(seconds) * time.Second
		require.False(t, r.due(now.Add(want-time.Second), false))
		now = now.Add(want)
		require.True(t, r.due(now, false))
		r.passed(now, true)
	}
	now = now.Add(10 * time.Second)
	require.False(t, r.due(now, false))
	require.True(t, r.due(now, true), "there is a new hole")
	r.passed(now, true)
	require.True(t, r.due(now.Add(20*time.Second), false))

	r = newRounds(now, 15*time.Second)
	for range 9 {
		r.passed(now, true)
	}
	require.True(t, r.due(now.Add(15*time.Second), false), "no task is lost for much longer than it has to be missing")
}
