package health_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/test/audittest"
)

// waiting is a queue.
type waiting struct{ written, stuck time.Time }

func (w waiting) Oldest() (written, stuck time.Time) { return w.written, w.stuck }

// Recording stands still if records wait and nothing of them is recorded, whether Postgres answers with
// errors or not at all, or if no partition can be taken over; not while nothing waits, however long.
func TestWhenRecordingStandsStill(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		queue  waiting
		failed bool
		after  time.Duration
		stalls bool
	}{
		"nothing waits":             {waiting{}, false, time.Hour, false},
		"it has just begun to wait": {waiting{now.Add(-time.Hour), now}, false, 59 * time.Second, false},
		"nothing is recorded":       {waiting{now, now}, false, time.Minute, true},
		"errors":                    {waiting{now, now}, true, time.Minute, true},
		"errors, and nothing waits": {waiting{}, true, 2 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := health.New(nil, audittest.Quiet(), &metrics.New(nil).Audit)
			if c.failed {
				h.Set(errors.New("no space"))
			}
			h.Look(now.Add(c.after), c.queue, time.Minute)
			require.Equal(t, c.stalls, h.Stalled() != nil)
			if c.stalls && c.failed {
				require.ErrorContains(t, h.Stalled(), "no space")
			}
			h.Set(nil)
			h.Look(now.Add(c.after), waiting{}, time.Minute)
			require.NoError(t, h.Stalled())
		})
	}
}
