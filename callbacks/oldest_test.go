package callbacks

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/waiting"
)

// A callback says why it waits: its endpoint failed, its host has no room, or no process claims it. Only the last is a
// stall, and the second if no delivery moves.
func TestWhyCallbacksWait(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, err := New(local(), r.deps("callbacks@one-1"))
	require.NoError(t, err)
	ask := func() map[waiting.Reason]waiting.Oldest {
		room := s.slots.room()
		w, err := s.table.waits(t.Context(), room)
		require.NoError(t, err)
		out := map[waiting.Reason]waiting.Oldest{}
		for _, o := range s.judge(time.Now(), w, room) {
			out[o.Reason] = o
		}
		return out
	}
	require.Empty(t, ask())

	r.due("dead", "http://dead.test/hook")
	r.one(`UPDATE callbacks SET attempts = 3, last_error = 'no answer', created_at = now() - interval '1 day', next_at = now() + interval '1 hour'
		WHERE task_id = 'dead' RETURNING task_id`)
	got := ask()
	require.Len(t, got, 1)
	require.True(t, got[waiting.Endpoint].Still.IsZero())
	require.InDelta(t, 24, time.Since(got[waiting.Endpoint].Since).Hours(), 0.1)
	require.Equal(t, "callback evt_dead", got[waiting.Endpoint].What)

	r.due("behind", "http://slow.test/hook")
	for range s.cfg.PerHost {
		s.slots.take([]*callback{{host: "slow.test", tenant: "acme"}})
	}
	got = ask()
	require.Len(t, got, 2)
	require.Equal(t, s.slots.lastMove(), got[waiting.Busy].Still)

	r.due("left", "http://fine.test/hook")
	require.NotContains(t, ask(), waiting.Stuck, "it may be claimed now")
	got = ask()
	require.Equal(t, "callback evt_left", got[waiting.Stuck].What)
	require.WithinDuration(t, time.Now(), got[waiting.Stuck].Still, time.Minute, "this process has just seen it")
}

// While Postgres gives no callbacks, that is why they wait; and if nothing is claimed for long, that is known.
func TestCallbacksWaitForPostgres(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s, err := New(local(), r.deps("callbacks@one-1"))
	require.NoError(t, err)
	now := time.Now()
	require.Empty(t, s.Waiting(now))
	s.oldest.postgres.Begin("it is down")
	require.Equal(t, waiting.Postgres, s.Waiting(now)[0].Reason)
	s.oldest.postgres.End()
	s.oldest.due.Set(now, nil)
	require.Empty(t, s.Waiting(now.Add(safetyInterval)))
	require.Equal(t, waiting.Stuck, s.Waiting(now.Add(time.Hour))[0].Reason)
}
