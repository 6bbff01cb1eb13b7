package health_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit/recorder/health"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/test/audittest"
)

type queue struct{ written, stuck time.Time }

func (q queue) Oldest() (written, stuck time.Time) { return q.written, q.stuck }

// What waits to be recorded is reported with why: whether Postgres answers with errors or not at all, or if no partition
// can be taken over; not while nothing waits, however long.
func TestWhyRecordingWaits(t *testing.T) {
	t.Parallel()
	since := time.Now().Add(-time.Minute)
	for name, c := range map[string]struct {
		queue  queue
		failed bool
		want   waiting.Reason
	}{
		"nothing waits":             {queue{}, false, ""},
		"nothing is recorded":       {queue{since, since}, false, waiting.Stuck},
		"errors":                    {queue{since, since}, true, waiting.Postgres},
		"errors, and nothing waits": {queue{}, true, waiting.Postgres},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := health.New(nil, audittest.Quiet(), &metrics.New(nil).Audit)
			if c.failed {
				h.Set(errors.New("no space"))
			}
			l := h.Waiting(c.queue)
			if c.want == "" {
				require.Empty(t, l)
				return
			}
			require.Len(t, l, 1)
			require.Equal(t, c.want, l[0].Reason)
			require.False(t, l[0].Still.IsZero())
			if !c.queue.stuck.IsZero() {
				require.Equal(t, since, l[0].Still)
			}
			if c.failed {
				require.Contains(t, l[0].Cause, "no space")
			}
			h.Set(nil)
			require.Empty(t, h.Waiting(queue{}))
		})
	}
}
