package callbacks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/waiting"
)

// oldest is what waits in the stage.
type oldest struct {
	due       *waiting.Published // by claimLoop
	postgres  waiting.Condition  // it gives no callbacks
	unclaimed waiting.Lost[string]
	looked    time.Time // used only by claimLoop
}

// Waiting says what waits in the stage.
func (s *Callbacks) Waiting(now time.Time) waiting.List {
	l := s.oldest.due.Get(now)
	s.oldest.postgres.Add(&l, waiting.Postgres, "what is due")
	return l
}

// lookInterval is how often due callbacks are looked at.
const lookInterval = safetyInterval / 2

// look counts what is due, and publishes what has waited for longest, from time to time.
func (s *Callbacks) look(ctx context.Context, r room) {
	now := time.Now()
	if now.Sub(s.oldest.looked) <= lookInterval {
		return
	}
	n, err := s.table.due(ctx)
	if err != nil {
		return // the claim that follows says so
	}
	w, err := s.table.waits(ctx, r)
	if err != nil {
		return
	}
	s.oldest.looked = now
	s.m.Due.Set(float64(n))
	s.oldest.due.Set(now, s.judge(now, w, r))
}

// judge says why callbacks wait.
func (s *Callbacks) judge(now time.Time, w waits, r room) (l waiting.List) {
	if w.failed > 0 {
		l.Add(waiting.Oldest{Reason: waiting.Endpoint, What: "callback " + w.failedID, Since: now.Add(-w.failed)})
	}
	busy := w.full
	if r.free <= 0 {
		busy = max(busy, w.claimable)
	}
	if busy > 0 {
		l.Add(waiting.Oldest{Reason: waiting.Busy, What: "a callback whose turn has not come", Since: now.Add(-busy), Still: s.slots.lastMove(), Allow: s.cfg.lease()})
	}
	var left []string
	if w.claimable > 0 && r.free > 0 {
		left = []string{w.claimableID}
	}
	// Another process may be claiming it now; whether it stays there is what counts.
	for id, since := range s.oldest.unclaimed.Look(now, left) {
		if now.Sub(since) > 0 {
			l.Add(waiting.Oldest{Reason: waiting.Stuck, What: "callback " + id, Since: now.Add(-w.claimable), Still: since, Allow: s.cfg.lease(), Cause: "it is due, and no process claims it"})
		}
	}
	return l
}

// waits is how long callbacks have waited, by Postgres' clock; 0: none does.
type waits struct {
	failed      time.Duration // since it was created: of one that its endpoint did not accept
	failedID    string
	full        time.Duration // since it was created: of one that is due, and whose host or tenant has no room
	claimable   time.Duration // since it was due: of one for which there is room
	claimableID string
}

// lookLimit bounds the rows that are looked at for why they wait.
const lookLimit = 1000

// waits looks at the callbacks that have been due for longest.
func (t *table) waits(ctx context.Context, r room) (w waits, err error) {
	hosts, tenants := full(r.hosts), full(r.tenants)
	rows, err := t.pool.Query(ctx, `SELECT callback_id, (extract(epoch FROM now() - created_at) * 1000)::float8, last_error IS NOT NULL,
			next_at <= now() AND (host = ANY ($1::text[]) OR tenant = ANY ($2::text[]))
		FROM callbacks WHERE state = 'DUE' ORDER BY next_at LIMIT $3`, hosts, tenants, lookLimit)
	if err != nil {
		return w, fmt.Errorf("looking at due callbacks: %w", err)
	}
	var id string
	var age float64
	var failed, noRoom bool
	_, err = pgx.ForEachRow(rows, []any{&id, &age, &failed, &noRoom}, func() error {
		switch d := milliseconds(age); {
		case failed && d > w.failed:
			w.failed, w.failedID = d, id
		case !failed && noRoom:
			w.full = max(w.full, d)
		}
		return nil
	})
	if err != nil {
		return w, fmt.Errorf("looking at due callbacks: %w", err)
	}
	err = t.pool.QueryRow(ctx, `SELECT callback_id, (extract(epoch FROM now() - next_at) * 1000)::float8 FROM callbacks
		WHERE state = 'DUE' AND next_at <= now() AND host <> ALL ($1::text[]) AND tenant <> ALL ($2::text[]) ORDER BY next_at LIMIT 1`, hosts, tenants).Scan(&id, &age)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return w, fmt.Errorf("looking for unclaimed callbacks: %w", err)
	default:
		w.claimable, w.claimableID = milliseconds(age), id
	}
	return w, nil
}

func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
