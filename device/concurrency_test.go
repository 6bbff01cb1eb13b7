package device

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestConcurrencyHalvesOnceARoundTripAndGrowsBack(t *testing.T) {
	c, now := NewConcurrency(8), epoch
	require.Equal(t, 8, c.Slots())
	require.Zero(t, c.Below(), "as many as reported")
	now = now.Add(time.Second)
	for range 8 { // all that were in flight get the same answer
		c.Ended(now, Throttled, 100*time.Millisecond)
		now = now.Add(time.Millisecond)
	}
	require.Equal(t, 4, c.Slots())
	require.Equal(t, 4, c.Below())
	for range 3 {
		now = now.Add(100 * time.Millisecond)
		c.Ended(now, TimedOut, 10*time.Millisecond)
	}
	require.Equal(t, 1, c.Slots(), "at least one")
	grown := 0
	for want := 2; want <= 8; want++ {
		for range want - 1 {
			require.Equal(t, want-1, c.Slots())
			c.Ended(now, OK, time.Millisecond)
			c.Ended(now, Fault, time.Millisecond)
			c.Ended(now, Neutral, time.Millisecond)
			grown++
		}
		require.Equal(t, want, c.Slots())
	}
	require.Equal(t, 28, grown)
	c.Ended(now, OK, 0)
	require.Equal(t, 8, c.Slots())
	require.Zero(t, c.Below())
	c.SetSlots(16)
	require.Equal(t, 16, c.Slots(), "it has not been throttled since")
	c.Ended(now.Add(time.Hour), Throttled, time.Millisecond)
	c.SetSlots(32)
	require.Equal(t, 8, c.Slots())
	c.SetSlots(2)
	require.Equal(t, 2, c.Slots())
	c.SetSlots(0)
	require.Equal(t, 1, c.Slots())
}

func TestConcurrencyInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 64).Draw(t, "slots")
		c, now := NewConcurrency(most), epoch
		for range rapid.IntRange(1, 300).Draw(t, "ends") {
			if rapid.IntRange(0, 20).Draw(t, "resize") == 0 {
				most = rapid.IntRange(1, 64).Draw(t, "slots")
				c.SetSlots(most)
			}
			before := c.Slots()
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "ms")) * time.Millisecond)
			o := Outcome(rapid.IntRange(0, int(Neutral)).Draw(t, "outcome"))
			c.Ended(now, o, time.Duration(rapid.IntRange(0, 1000).Draw(t, "took"))*time.Millisecond)
			after := c.Slots()
			require.True(t, after >= 1 && after <= most)
			require.LessOrEqual(t, after, before+1)
			require.GreaterOrEqual(t, after, max(1, before/2))
			if o != OK {
				require.LessOrEqual(t, after, before)
			} else {
				require.GreaterOrEqual(t, after, before)
			}
			require.Equal(t, after < most, c.Below() == after)
		}
	})
}
