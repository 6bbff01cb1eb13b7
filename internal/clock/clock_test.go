package clock

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSkewHasSteps(t *testing.T) {
	t.Parallel()
	s, err := ParseSkew("2h,-30m@10s,0s@20s")
	require.NoError(t, err)
	require.Equal(t, 2*time.Hour, s.at(s.began))
	require.Equal(t, 2*time.Hour, s.at(s.began.Add(9*time.Second)))
	require.Equal(t, -30*time.Minute, s.at(s.began.Add(10*time.Second)))
	require.Zero(t, s.at(s.began.Add(time.Minute)))
	none, err := ParseSkew("")
	require.NoError(t, err)
	require.Nil(t, none)
	for _, text := range []string{"two hours", "2h,", "2h@soon"} {
		_, err := ParseSkew(text)
		require.ErrorContains(t, err, text)
	}
}

// The reference decides, whatever the machine's clock says.
func TestNowFollowsTheReference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer agreed.Store(nil)
		require.True(t, Now().Equal(time.Now()), "until the reference has answered, the machine's clock counts")
		asked := time.Now()
		reference := asked.Add(2 * time.Hour)
		time.Sleep(10 * time.Millisecond) //nolint:forbidigo // virtual time: the answer was under way
		require.Equal(t, -2*time.Hour, Observe(reference.Add(5*time.Millisecond), asked))
		require.True(t, Now().Equal(reference.Add(10*time.Millisecond)))
		time.Sleep(time.Minute) //nolint:forbidigo // virtual time
		require.True(t, Now().Equal(reference.Add(time.Minute+10*time.Millisecond)), "time goes on without the reference")
		require.Equal(t, time.Second, Until(Now().Add(time.Second)))
		require.Equal(t, time.Second, Since(Now().Add(-time.Second)))

		before := Now()
		Observe(before.Add(15*time.Millisecond), time.Now())
		require.True(t, Now().Equal(before), "within the tolerance, nothing jumps")
		Observe(before.Add(-time.Hour), time.Now())
		require.True(t, Now().Equal(before.Add(-time.Hour)), "the reference was set back, and everyone with it")
	})
}
