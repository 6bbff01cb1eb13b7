package learn

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
)

func TestFigures(t *testing.T) {
	var f Figures
	at := time.Unix(1_000_000, 0)
	of := func(after time.Duration) device.Health {
		h := device.Health{State: device.StateClosed}
		f.Add(&h, at.Add(after))
		return h
	}
	require.Equal(t, device.Figures{}, of(0).Figures)
	for i := range 8 {
		f.Ended(at.Add(time.Duration(i)*time.Second), OK, 200*time.Millisecond, "")
		f.Tokens(at.Add(time.Duration(i)*time.Second), 50)
	}
	f.Ended(at.Add(8*time.Second), Neutral, time.Hour, "")
	f.Ended(at.Add(8*time.Second), Throttled, time.Hour, "")
	require.Empty(t, of(8*time.Second).Failing)
	f.Ended(at.Add(9*time.Second), Suspect, time.Hour, "first")
	f.Ended(at.Add(10*time.Second), Fault, time.Hour, "second")
	h := of(10 * time.Second)
	require.Equal(t, device.Figures{Completed: 8, FailureRate: 0.2, MeanMS: 200, TokensPerSecond: 40}, h.Figures)
	require.Equal(t, "second", h.Failing)
	require.Equal(t, at.Add(9*time.Second), h.Since, "the first of those in a row")

	f.Ended(at.Add(11*time.Second), Charged, 100*time.Millisecond, "the task's")
	require.Equal(t, "second", of(11*time.Second).Failing, "it shows neither")
	f.Ended(at.Add(12*time.Second), OK, 100*time.Millisecond, "")
	require.Empty(t, of(12*time.Second).Failing)
	require.Equal(t, device.Figures{Completed: 10}, of(80*time.Second).Figures, "what was lately is over")
}
