package tables

import (
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestIndexIsAMap(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var x index
		have := map[uint64]uint32{}
		for range rapid.IntRange(0, 5000).Draw(t, "n") {
			k := 1 + rand.Uint64N(3000)
			s, isNew := x.at(k)
			_, had := have[k]
			require.Equal(t, !had, isNew)
			s.version++
			have[k]++
		}
		require.Equal(t, len(have), x.n)
		for k := range uint64(3002) {
			s := x.get(k + 1)
			require.Equal(t, have[k+1] > 0, s != nil)
			if s != nil {
				require.Equal(t, have[k+1], s.version)
			}
		}
	})
}

// Totals are 0 exactly if each key has been given and taken the same, in any order and by any counter.
func TestTotals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := NewLog(Options{Now: time.Date(2026, 1, 9, 0, 0, 0, 0, time.UTC)})
		counters := []*Counter{l.Counter(), l.Counter(), l.Counter()}
		const base = 26 * 365 * dayMicros
		left := map[[2]int64]int64{}
		add := func(key, day, n int64) {
			c := counters[rapid.IntRange(0, 2).Draw(t, "counter")]
			c.begin()
			c.number(key)
			c.add(countsUsage, base+day*dayMicros, n)
			left[[2]int64{key, day}] += n
		}
		n := rapid.Int64Range(math.MinInt64/4, math.MaxInt64/4)
		for range rapid.IntRange(0, 20).Draw(t, "adds") {
			add(rapid.Int64Range(0, 5).Draw(t, "key"), rapid.Int64Range(0, 3).Draw(t, "day"), n.Draw(t, "n"))
		}
		keep := map[int64]bool{}
		for k, have := range left {
			if have != 0 && rapid.Bool().Draw(t, "keep") {
				keep[k[1]] = true
				continue
			}
			add(k[0], k[1], -have)
		}
		for _, c := range counters {
			l.Absorb(c)
		}
		require.Len(t, l.counted.differingDays(countsUsage), len(keep))
	})
}

func TestTextOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ object, member, want string }{
		{`{"bytes":12,"reason":"idle","tasks":3}`, "reason", "idle"}, {`{"bytes":12,"reason":"idle","tasks":3}`, "tasks", "3"}, {`{"bytes":12,"reason":"idle","tasks":3}`, "bytes", "12"},
		{`{"reason":"a,\"tasks\":9","tasks":3}`, "tasks", "3"}, {`{"x":{"tasks":9},"tasks":3}`, "tasks", "3"}, {`{"tasks" : 3}`, "tasks", "3"}, {`{"tasks":null}`, "tasks", ""},
		{`{"subtasks":9}`, "tasks", ""}, {`{}`, "tasks", ""}, {`nonsense`, "tasks", ""}, {`{"reason":"tasks"}`, "tasks", ""}, {`{"reason":""}`, "reason", ""},
	} {
		require.Equal(t, c.want, string(textOf([]byte(c.object), c.member)), c.object)
	}
}

func TestLeft(t *testing.T) {
	t.Parallel()
	require.Equal(t, "äö", string(left([]byte("äöü"), 2)))
	require.Equal(t, "äöü", string(left([]byte("äöü"), 3)))
}

// docs/audit.md has each column that is not proven.
func TestTheManualListsWhatIsNotProven(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../../docs/audit.md")
	require.NoError(t, err)
	for _, b := range Bookkeeping {
		require.Contains(t, string(doc), "| `"+b.Table+"` | `"+strings.Join(b.Columns, "`, `")+"` |")
	}
}
