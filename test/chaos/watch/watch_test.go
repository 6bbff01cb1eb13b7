package watch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var start = time.Unix(1_700_000_000, 0)

func at(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }

func reader(left, position string) Sample {
	return Sample{Kind: "reader", Name: "batches/0", Left: left, At: position, Needs: []string{"kafka", "workers"}, Bound: 10 * time.Second}
}

func nothing(string) bool { return false }

// look looks once a second from one time to another, at a thing that stands still there.
func look(w *Watch, from, to float64, s Sample, lacks func(string) bool) (begun []Stall) {
	for t := from; t <= to; t++ {
		begun = append(begun, w.Look(at(t), []Sample{s}, lacks)...)
	}
	return begun
}

func TestAThingThatStandsStillForTooLongIsFoundOnce(t *testing.T) {
	t.Parallel()
	w := New()
	require.Empty(t, look(w, 0, 10, reader("3 records", "7"), nothing))
	found := look(w, 11, 30, reader("3 records", "7"), nothing)
	require.Len(t, found, 1)
	require.Equal(t, at(0), found[0].Since)
	require.Equal(t, 11*time.Second, found[0].Counted)
	require.Empty(t, look(w, 31, 31, reader("3 records", "8"), nothing))
	all := w.Stalls()
	require.Len(t, all, 1)
	require.True(t, all[0].Moved)
	require.Equal(t, 30*time.Second, all[0].Stood)
	require.Equal(t, 30*time.Second, w.Longest()["reader"])
}

func TestWhatMovesOrHasNothingLeftIsFine(t *testing.T) {
	t.Parallel()
	w := New()
	for i := range 60 {
		require.Empty(t, w.Look(at(float64(i)), []Sample{reader("1 record", string(rune('a'+i/8)))}, nothing))
	}
	require.Empty(t, look(w, 60, 200, reader("", "7"), nothing))
	require.Empty(t, look(w, 201, 209, reader("1 record", "7"), nothing), "it counts from when there is something left")
	w.Look(at(210), nil, nothing)
	require.Empty(t, look(w, 211, 219, reader("1 record", "7"), nothing), "a thing that was gone is another one")
	require.Empty(t, w.Stalls())
}

func TestTimeWithoutWhatItNeedsDoesNotCount(t *testing.T) {
	t.Parallel()
	w := New()
	require.Empty(t, look(w, 0, 5, reader("1 record", "7"), nothing))
	require.Empty(t, look(w, 6, 300, reader("1 record", "7"), func(need string) bool { return need == "workers" }))
	require.Empty(t, look(w, 301, 305, reader("1 record", "7"), func(need string) bool { return need == "postgres" }))
	found := look(w, 306, 306, reader("1 record", "7"), nothing)
	require.Len(t, found, 1)
	require.Equal(t, 306*time.Second, w.Stalls()[0].Stood)
}

func TestTimeInWhichNothingWasSeenCountsLittle(t *testing.T) {
	t.Parallel()
	w := New()
	require.Empty(t, w.Look(at(0), []Sample{reader("1 record", "7")}, nothing))
	require.Empty(t, w.Look(at(100), []Sample{reader("1 record", "7")}, nothing))
}

// TestAStallIsExactlyTooMuchCountedTime: whatever happens, a stall is found if and only if the looks at one
// position add up to more than the bound.
func TestAStallIsExactlyTooMuchCountedTime(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w, counted, want, position := New(), 0, 0, 0
		reported := false
		for i := range rapid.IntRange(1, 80).Draw(t, "looks") {
			left, lacking := "1 record", rapid.IntRange(0, 3).Draw(t, "lacking") == 0
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0:
				position++
				counted, reported = 0, false
			case 1:
				left, counted, reported = "", 0, false
			default:
				if i > 0 && !lacking {
					counted++
				}
			}
			w.Look(at(float64(i)), []Sample{reader(left, string(rune('0'+position)))}, func(string) bool { return lacking })
			if counted > 10 && !reported {
				want++
				reported = true
			}
		}
		require.Len(t, w.Stalls(), want)
	})
}
