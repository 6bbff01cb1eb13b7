package budget

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The budget is not exceeded, nothing leaks, and every partition can always use its own share.
func TestBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New(rapid.IntRange(1, 50).Draw(t, "records"), 1<<20, 0.5)
		shares := make([]*Share, rapid.IntRange(1, 6).Draw(t, "partitions"))
		held := map[*Share]int{}
		for i := range shares {
			shares[i] = &Share{}
			b.Join(shares[i])
		}
		over, cancel := context.WithCancel(context.Background())
		cancel()
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				s := rapid.SampledFrom(shares).Draw(t, "who")
				n, err := b.TakeRecords(over, s, rapid.IntRange(1, 20).Draw(t, "want"))
				if err != nil {
					require.GreaterOrEqual(t, int64(held[s]), b.ownRecords, "a partition was refused its own share")
					n = 0
				}
				held[s] += n
			},
			"give back": func(t *rapid.T) {
				s := rapid.SampledFrom(shares).Draw(t, "who")
				if held[s] == 0 {
					t.Skip()
				}
				held[s]--
				b.Release(s, 1, 0)
			},
			"": func(t *rapid.T) {
				sum := 0
				for _, n := range held {
					sum += n
				}
				records, _ := b.Held()
				require.Equal(t, int64(sum), records)
				require.LessOrEqual(t, records, max(b.maxRecords, int64(len(shares))))
			},
		})
		for _, s := range shares {
			b.Leave(s)
		}
		records, bytes := b.Held()
		require.Zero(t, records)
		require.Zero(t, bytes)
	})
}

func TestBudgetWakesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(2, 1<<20, 0.5)
		a := &Share{}
		b.Join(a)
		n, err := b.TakeRecords(t.Context(), a, 5)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		got := make(chan int)
		go func() {
			n, _ := b.TakeRecords(t.Context(), a, 5)
			got <- n
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Fatal("took more than there was")
		default:
		}
		b.Release(a, 1, 0)
		require.Equal(t, 1, <-got)
	})
}
