package tracker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Whatever is handed out and finished, and whenever it is asked: the oldest is the lowest unfinished offset, it is at
// least as old as it is said to be, and as soon as all that was handed out before a question is finished, it is said to be
// younger than that question.
func TestOldestAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := New()
		tr.Begin(0, nil, "")
		now, next := time.Unix(0, 0), int64(0)
		handed := map[int64]time.Time{} // the unfinished ones
		type question struct {
			at   time.Time
			next int64
		}
		var asked []question
		t.Repeat(map[string]func(*rapid.T){
			"hand out": func(*rapid.T) {
				tr.Add(next)
				handed[next] = now
				next++
			},
			"finish": func(t *rapid.T) {
				if next > 0 {
					o := rapid.Int64Range(0, next-1).Draw(t, "offset")
					tr.Finish(o)
					delete(handed, o)
				}
			},
			"time": func(*rapid.T) { now = now.Add(time.Second) },
			"ask": func(t *rapid.T) {
				offset, since, ok := tr.Oldest(now)
				for _, q := range asked {
					if offset >= q.next {
						require.False(t, since.Before(q.at), "what was handed out before a question is finished")
					}
				}
				asked = append(asked, question{now, next})
				require.Equal(t, len(handed) > 0, ok)
				if !ok {
					return
				}
				for o := range handed {
					require.LessOrEqual(t, offset, o)
				}
				require.False(t, since.Before(handed[offset]), "it is not as old as that")
			},
		})
	})
}

// What stands still gets older, and what moves does not.
func TestWhatStandsStillGetsOlder(t *testing.T) {
	tr := New()
	tr.Begin(10, nil, "")
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	tr.Add(10)
	tr.Add(11)
	_, _, _ = tr.Oldest(at(0))
	for s := 1; s < 100; s++ {
		offset, since, ok := tr.Oldest(at(s))
		require.True(t, ok)
		require.Equal(t, int64(10), offset)
		require.Equal(t, at(0), since)
	}
	tr.Finish(10)
	_, since, _ := tr.Oldest(at(100))
	require.Equal(t, at(0), since, "11 was handed out then, too")
	tr.Add(12)
	tr.Finish(11)
	_, since, _ = tr.Oldest(at(101))
	require.Equal(t, at(101), since)

	_, unread := tr.Unread(13, at(0))
	require.False(t, unread)
	for s := range 100 {
		since, unread = tr.Unread(20, at(s))
		require.True(t, unread)
		require.Equal(t, at(0), since)
	}
	for o := int64(13); o < 20; o++ {
		tr.Add(o)
	}
	since, unread = tr.Unread(30, at(100))
	require.True(t, unread)
	require.Equal(t, at(100), since)
}
