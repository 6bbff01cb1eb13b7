package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// chunk is what one transaction records: consecutive records of some partitions.
type chunk []*entry

// atom is the smallest thing that can be recorded or refused: an event, or a result.
type atom struct {
	entry *entry
	index int // into entry.events; -1: the result
}

func (c chunk) atoms() []atom {
	n := 0
	for _, e := range c {
		n += len(e.events) + 1
	}
	as := make([]atom, 0, n)
	for _, e := range c {
		for i := range e.events {
			as = append(as, atom{e, i})
		}
		if e.result != nil {
			as = append(as, atom{e, -1})
		}
	}
	return as
}

// written is what a transaction did.
type written struct {
	rows, results, duplicates, inDefault int
}

// db writes chunks. It is used by one goroutine.
type db struct {
	pool    *pgxpool.Pool
	actor   string
	timeout time.Duration // for one transaction
	rows    rowBuffer
	typed   bool // the last transaction went well: what its connection knows of our types is so
	careful int  // so many more chunks are written the sure way
	counts  rollup
	days    days
}

func newDB(pool *pgxpool.Pool, actor string, timeout time.Duration) *db {
	return &db{pool: pool, actor: actor, timeout: timeout, rows: rowBuffer{literal: takesLiterals(pool)}, days: newDays()}
}

// fenceSQL advances the offsets of a chunk's partitions, those that are as we
// left them. A session that hangs in the middle (its network is gone) must not
// hold the locks of these rows for longer than it may.
const fenceSQL = `
UPDATE stream_offsets o SET next_offset = u.next, updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u (topic, partition, epoch, expected, next)
WHERE o.topic = u.topic AND o.partition = u.partition AND o.epoch = u.epoch AND o.next_offset = u.expected
RETURNING o.topic, o.partition`

const sessionSQL = `SELECT now(), set_config('idle_in_transaction_session_timeout', '30s', true), set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`

// advance is how far a chunk brings each partition.
func (c chunk) advance() map[*tenure]int64 {
	to := map[*tenure]int64{}
	for _, e := range c {
		to[e.part] = max(to[e.part], e.offset+1)
	}
	return to
}

func queueFence(b *pgx.Batch, to map[*tenure]int64, ours map[string]bool) {
	n := len(to)
	topics, parts := make([]string, 0, n), make([]int32, 0, n)
	epochs, expected, next := make([]int64, 0, n), make([]int64, 0, n), make([]int64, 0, n)
	for t, upTo := range to {
		topics, parts = append(topics, t.topic), append(parts, int32(t.partition))
		epochs, expected, next = append(epochs, t.epoch), append(expected, t.next), append(next, upTo)
	}
	b.Queue(fenceSQL, topics, parts, epochs, expected, next).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			t := tenure{}
			if err := rows.Scan(&t.topic, &t.partition); err != nil {
				return err
			}
			ours[t.String()] = true
		}
		return rows.Err()
	})
}

// apply records a chunk in one transaction. When it returns nil, everything is
// committed; *errNotOurs: nothing is, and the offsets are not as we left them.
// Any other error leaves the outcome open when it came from the commit.
func (d *db) apply(ctx context.Context, c chunk) (w written, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	fault.At("audit.before_begin")
	tx, err := d.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return w, fmt.Errorf("beginning a transaction: %w", err)
	}
	defer rollback(ctx, tx)
	to := c.advance()
	w, err = d.write(ctx, tx, c.atoms(), to, shardOf(to))
	if err != nil {
		return w, err
	}
	fault.At("audit.before_commit")
	if err := tx.Commit(ctx); err != nil {
		return w, fmt.Errorf("committing: %w", err)
	}
	fault.At("audit.after_commit")
	d.days.settle(true)
	d.careful = max(0, d.careful-1)
	for t, next := range to {
		t.next = next
	}
	return w, nil
}

// probe tries to write atoms and takes it back; the error says whether Postgres
// refuses them. The shard is that of their chunk: what is refused may be a sum.
func (d *db) probe(ctx context.Context, as []atom, shard int32) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	tx, err := d.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer rollback(ctx, tx)
	_, err = d.write(ctx, tx, as, nil, shard)
	return err
}

// rollback ends a transaction that was not committed. The time for it is not
// the time of the caller, whose context may have ended.
func rollback(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // fails when the connection did, and is not needed after a commit
}

// write does the work of one transaction: fence and results, rows, then states
// and whom to tell. That is three round trips, and one more for many results and for
// many states. Without offsets (to) it is a probe, which goes the sure way: it must
// not fail for what was taken before.
func (d *db) write(ctx context.Context, tx pgx.Tx, as []atom, to map[*tenure]int64, shard int32) (w written, err error) {
	quick := d.careful == 0 && to != nil
	var all []offered
	for _, a := range as {
		if a.index < 0 {
			all = append(all, offered{a.entry, a.entry.result})
		}
	}
	first, losers := firsts(all)
	// After an error they are looked up anew: restoring a database beside its
	// connections may have made others of the same name.
	types, err := rowTypesOf(ctx, tx.Conn(), !d.typed)
	if err != nil {
		return w, err
	}
	d.typed = false
	defer func() { d.typed = err == nil }()

	ends := chains{}
	won, lost, now, err := d.claim(ctx, tx, len(as) > len(all), first, types, to, ends, quick)
	if err != nil {
		return w, err
	}
	if losers = append(losers, lost...); len(losers) > 0 {
		if losers, err = duplicates(ctx, tx, losers, won); err != nil {
			return w, err
		}
	}
	known := newStates(len(as) / 4)
	if w, err = d.copyRows(ctx, tx, as, losers, known, ends, now, quick); err != nil {
		return w, err
	}
	fault.At("audit.after_copy")
	for _, r := range won {
		s := stateOfResult(r)
		known.add(&s)
		d.counts.addResult(r)
	}
	if quick {
		if err = known.copyNew(ctx, tx, &d.rows); err != nil {
			return w, err
		}
	}
	var b pgx.Batch
	d.days.queueCheck(&b)
	known.queue(&b, &d.rows, types.task)
	known.queueRanks(&b)
	d.counts.queue(&b, shard)
	ends.queueWrite(&b)
	queueCallbacks(&b, won)
	queueNotifications(&b, won)
	w.results, w.duplicates = len(won), len(losers)
	return w, flush(ctx, tx, &b, "writing states")
}

// claim advances the offsets of a chunk, locks the log if there are events, reads the
// ends of its chains and takes its results: won are those that are the first of their tasks, lost the others.
func (d *db) claim(ctx context.Context, tx pgx.Tx, events bool, rs []offered, types rowTypes, to map[*tenure]int64, ends chains, quick bool) (won []*task.Result, lost []offered, now time.Time, err error) {
	ours := make(map[string]bool, len(to))
	taken := map[task.Key]*task.Result{}
	var b pgx.Batch
	b.Queue(sessionSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&now, nil, nil) })
	queueFence(&b, to, ours)
	ends.queueRead(&b, to)
	if events { // without, there are at most rows of duplicates, all of today: one lock makes no circle
		b.Queue(lockSQL)
	}
	copied := quick && len(rs) >= copyFrom
	if !copied {
		queueResults(&b, rs, &d.rows, types.result, taken)
	}
	if err := flush(ctx, tx, &b, "advancing offsets and taking results"); err != nil {
		return nil, nil, now, err
	}
	var gone []*tenure
	for t := range to {
		if !ours[t.String()] {
			gone = append(gone, t)
		}
	}
	if len(gone) > 0 {
		return nil, nil, now, &errNotOurs{gone}
	}
	if copied {
		if err := copyResults(ctx, tx, rs, &d.rows); err != nil {
			return nil, nil, now, fmt.Errorf("writing %d results: %w", len(rs), err)
		}
	}
	fault.At("audit.after_results")
	won = make([]*task.Result, 0, len(rs))
	for _, o := range rs {
		if copied || taken[o.r.Key()] != nil {
			won = append(won, o.r)
		} else {
			lost = append(lost, o)
		}
	}
	return won, lost, now, nil
}

// shardOf is a number that no other writer's chunk has at this time, here or in
// another process: that of a partition that the chunk's writer owns.
func shardOf(to map[*tenure]int64) int32 {
	lowest := int32(math.MaxInt32)
	for t := range to {
		n := 2 * t.place().partition
		if t.topic != stream.Events {
			n++
		}
		lowest = min(lowest, n)
	}
	return lowest
}

// copyRows writes the audit rows at the ends of their chains and gathers what
// they tell of states.
func (d *db) copyRows(ctx context.Context, tx pgx.Tx, as []atom, duplicates []offered, known *states, ends chains, now time.Time, quick bool) (w written, err error) {
	d.days.begin()
	d.counts.reset()
	add := func(e *task.Event, from origin, end *chain) {
		rows, placed := d.days.of(e.Time, quick)
		rows.row(e, from, now, end)
		w.rows++
		if !placed {
			w.inDefault++
		}
	}
	var s state
	for _, a := range as {
		if a.index < 0 {
			continue
		}
		it := &a.entry.events[a.index]
		add(&it.v, a.entry.origin(it.index), ends.of(a.entry.part))
		if stateOfEvent(&it.v, &s) {
			known.add(&s)
		}
		known.rank(&it.v)
		d.counts.add(&it.v)
	}
	// In the order of their records, as every row of a chain.
	slices.SortFunc(duplicates, func(x, y offered) int { return cmp.Compare(x.entry.offset, y.entry.offset) })
	for _, o := range duplicates {
		e := duplicateEvent(o.r, d.actor, time.Now())
		add(&e, o.entry.origin(0), ends.of(o.entry.part))
	}
	return w, d.days.copyRows(ctx, tx)
}

// refused reports whether Postgres refuses the content: trying again is of no
// use. It is class 22 (data), 23 (constraints) and 54 (too large or complex).
func refused(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "22", "23", "54":
		return true
	}
	return false
}

// refusedAmong finds what Postgres refuses by halving: about 2 log₂ n tries for
// one bad among n.
func (d *db) refusedAmong(ctx context.Context, as []atom, shard int32) (bad []atom, why []error, err error) {
	if len(as) == 0 {
		return nil, nil, nil
	}
	switch err := d.probe(ctx, as, shard); {
	case err == nil:
		return nil, nil, nil
	case !refused(err):
		return nil, nil, err
	case len(as) == 1:
		return as, []error{err}, nil
	}
	half := len(as) / 2
	for _, part := range [][]atom{as[:half], as[half:]} {
		b, w, err := d.refusedAmong(ctx, part, shard)
		if err != nil {
			return nil, nil, err
		}
		bad, why = append(bad, b...), append(why, w...)
	}
	return bad, why, nil
}
