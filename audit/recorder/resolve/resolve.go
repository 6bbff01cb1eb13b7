// Package resolve finds the tasks whose answers were lost with records that Kafka deleted before they were
// recorded, and makes sure that each of them ends. Otherwise they would stay PENDING: they have left the
// topics of tasks, and Postgres has no result.
//
//	stream_breaks has a hole ──▶ pass ──▶ lost tasks whose record is there ──▶ run again, once
//	          ▲                    │  └─▶ the others, and those lost twice ───▶ end as FAILED, class lost
//	          │                    ▼
//	          └── resolved ◀── none is lost or underway
//
// A task is lost if it has no result and is nowhere: not waiting, parked, assigned, in a batch, in a result
// that is not recorded yet, or a dead letter. A stage finishes a record only after everything it became is
// acknowledged. So a pass that reads first the offsets that a stage has committed and then the end of the
// next topic finds each task that is on its way at least once, even while it moves (package ledger, in
// cmd, reads in the same order).
//
// No task is answered twice: what runs again is a requeued copy of the same run, and the recorder keeps the
// first result of each run. If the process dies, the next pass finds the copies in their topics.
//
// A pass reads the topics of tasks as a whole. It runs only after a hole, in one process at a time, and
// less often the longer tasks are underway.
package resolve

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

const (
	firstInterval = 10 * time.Second // between looks for holes, and between the first passes
	lastInterval  = 10 * time.Minute // between passes while tasks are underway, at most

	// maxOpen bounds the tasks that a pass remembers. If more are lost, the next pass goes on after them.
	maxOpen = 50_000
)

// Deps is what a resolver works with.
type Deps struct {
	Log      *stream.Client
	Pool     *pgxpool.Pool
	Outbox   *stream.Outbox
	Logger   *slog.Logger
	Metrics  *metrics.Audit
	Instance string

	// LostAfter is how long a task that Postgres knows may be missing in Kafka: its event may be recorded
	// before its record is written.
	LostAfter time.Duration
}

// Resolver resolves the holes of the log.
type Resolver struct {
	Deps
	max   int
	known map[holeKey]bool // the holes that the last pass was about

	absent, stillAbsent map[task.Run]time.Time // since when the records of tasks are missing: before this round, and in it
}

// New returns a resolver.
func New(deps Deps) *Resolver { return &Resolver{Deps: deps, max: maxOpen} }

// Run looks for holes until ctx ends.
func (r *Resolver) Run(ctx context.Context) {
	next := newRounds(time.Now(), r.LostAfter)
	tick := time.NewTicker(firstInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		fresh, err := r.hasNew(ctx)
		if err == nil && !next.due(time.Now(), fresh) {
			continue
		}
		left := true // unless it is known
		if err == nil {
			left, err = r.Once(ctx)
		}
		if err != nil && ctx.Err() == nil {
			r.Logger.Warn("looking for tasks whose answers were lost failed; trying again later", "error", pg.Describe(err))
		}
		next.passed(time.Now(), left || err != nil)
	}
}

// rounds says when the next pass is due. While tasks are underway, passes become rarer; a new hole begins
// another round.
type rounds struct {
	last          time.Time
	wait, longest time.Duration
}

func newRounds(now time.Time, lostAfter time.Duration) *rounds {
	return &rounds{last: now, wait: firstInterval, longest: min(lastInterval, max(firstInterval, lostAfter))}
}

func (r *rounds) due(now time.Time, fresh bool) bool { //nolint:revive // what the caller has found
	if fresh {
		r.wait = firstInterval
	}
	return fresh || now.Sub(r.last) >= r.wait
}

// passed notes a pass, and whether there has to be another one.
func (r *rounds) passed(now time.Time, again bool) { //nolint:revive // what the pass has found
	r.last = now
	if again {
		r.wait = min(2*r.wait, r.longest)
	} else {
		r.wait = firstInterval
	}
}

// hasNew reports whether there are holes that the last pass was not about.
func (r *Resolver) hasNew(ctx context.Context) (bool, error) {
	holes, err := r.openHoles(ctx)
	return slices.ContainsFunc(holes, func(h holeKey) bool { return !r.known[h] }), err
}

// Once resolves what holes there are, if no other process does. left reports whether tasks are underway
// that were run again because of a hole, so that it has to look again.
func (r *Resolver) Once(ctx context.Context) (left bool, err error) {
	conn, err := r.Pool.Acquire(ctx)
	if err != nil {
		return false, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", pg.ResolverLock).Scan(&mine); err != nil {
		return false, fmt.Errorf("taking the lock for resolving holes: %w", err)
	}
	if !mine {
		return false, nil // another process is doing it
	}
	defer func() {
		// The lock would stay with the pooled session. If it cannot be released, the session is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", pg.ResolverLock); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	holes, err := r.openHoles(ctx)
	if err != nil || len(holes) == 0 {
		return false, err
	}
	r.known = make(map[holeKey]bool, len(holes))
	for _, h := range holes {
		r.known[h] = true
	}
	r.stillAbsent = map[task.Run]time.Time{}
	defer func() { r.absent = r.stillAbsent }()
	seen, err := r.look(ctx)
	if err != nil {
		return false, err
	}
	if seen.ran+seen.failed > 0 {
		r.Metrics.LostTasks.WithLabelValues("run_again").Add(float64(seen.ran))
		r.Metrics.LostTasks.WithLabelValues("failed").Add(float64(seen.failed))
		r.Logger.Warn("the answers of tasks were lost with records that Kafka deleted before they were recorded", "holes", len(holes), "run_again", seen.ran, "failed", seen.failed)
	}
	if seen.ran+seen.failed+seen.underway > 0 {
		return true, nil // until a pass finds all of them ended
	}
	return false, r.close(ctx, holes)
}

// look makes the passes of one round.
func (r *Resolver) look(ctx context.Context) (seen tally, err error) {
	for at := new(cursor); at != nil; {
		p := &pass{Resolver: r, from: *at}
		if at, err = p.run(ctx); err != nil {
			return seen, err
		}
		seen.add(p)
	}
	if seen != (tally{}) {
		return seen, nil
	}
	p := &pass{Resolver: r, from: cursor{rowsDone: true, scanDone: true}}
	if p.ended, err = r.readEnded(ctx); err != nil || len(p.ended) == 0 {
		return seen, err
	}
	_, err = p.run(ctx)
	seen.add(p)
	return seen, err
}

// tally counts what the passes of one round found.
type tally struct{ ran, failed, underway int }

func (t *tally) add(p *pass) {
	t.ran, t.failed, t.underway = t.ran+p.ran, t.failed+p.failed, t.underway+p.underway
}

// holeKey is the primary key of a row of stream_breaks.
type holeKey struct {
	Topic     string
	Partition int32
	Kind      string
	Seq       int64
	First     int64
}

// openHoles returns the holes in which answers may have been lost. Those of events are among them: without its
// events a task ends all the same, but one of them may have said that there is a hole in another topic.
func (r *Resolver) openHoles(ctx context.Context) ([]holeKey, error) {
	if _, err := r.Pool.Exec(ctx, "UPDATE stream_breaks SET resolved_at = now() WHERE resolved_at IS NULL AND kind = 'recorded_again'"); err != nil {
		return nil, fmt.Errorf("noting which holes lose no answers: %w", err)
	}
	rows, err := r.Pool.Query(ctx, `SELECT topic, partition, kind, chain_seq, first_offset FROM stream_breaks
		WHERE resolved_at IS NULL AND kind IN ('records_missed', 'topic_replaced')`)
	if err == nil {
		var all []holeKey
		if all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[holeKey]); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("reading the holes of the log: %w", err)
}

// close notes that no task is lost because of these holes any more.
func (r *Resolver) close(ctx context.Context, holes []holeKey) error {
	var b pgx.Batch
	for _, h := range holes {
		b.Queue(`UPDATE stream_breaks SET resolved_at = now() WHERE topic = $1 AND partition = $2 AND kind = $3 AND chain_seq = $4 AND first_offset = $5`,
			h.Topic, h.Partition, h.Kind, h.Seq, h.First)
	}
	if err := r.Pool.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("noting that holes are resolved: %w", err)
	}
	r.Logger.Info("no task is without an answer because of records that Kafka deleted", "holes", len(holes))
	return nil
}
