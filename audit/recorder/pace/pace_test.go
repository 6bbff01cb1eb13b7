package pace_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/audit/recorder/pace"
)

// Whatever limit there is, and however it changes, the writer finds it in a few steps, comes back to full
// size once it is gone, and loses few transactions to a limit that lasts.
func TestThePaceFollowsTheLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 1_000_000).Draw(t, "most")
		p := pace.New(most)
		run := func(limit, n int) (lost int) {
			for range n {
				rows := p.Rows()
				if rows < 1 || rows > most {
					t.Fatalf("%d rows of 1 to %d", rows, most)
				}
				if rows > limit {
					p.TimedOut(rows)
					lost++
				} else {
					p.Passed(rows)
				}
			}
			return lost
		}
		limit := rapid.IntRange(1, most).Draw(t, "limit")
		run(limit, 20)        // at most 2²⁰ rows
		if p.Rows() > limit { // it has just grown
			run(limit, 1)
		}
		require.LessOrEqual(t, p.Rows(), limit)
		require.Greater(t, 2*p.Rows()+1, limit/2, "not much smaller than it may be")
		run(limit, 3000)
		require.LessOrEqual(t, run(limit, 2000), 2000/100, "a limit that lasts")
		run(most, 20*256)
		require.Equal(t, most, p.Rows())
	})
}

// Small transactions say nothing about large ones.
func TestSmallTransactionsDoNotRaiseThePace(t *testing.T) {
	t.Parallel()
	p := pace.New(1000)
	p.TimedOut(1000)
	for range 1000 {
		p.Passed(3)
	}
	require.Equal(t, 500, p.Rows())
}
