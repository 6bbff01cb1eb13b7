package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// Following the log. Rows become visible in the order of commits, which is neither that of their
// times nor that of ingested_at. But within a chain they are numbered without gaps and committed in
// that order. So a follower remembers the number of the last row of each chain, reads from
// audit_chains how many there are now, and queries exactly those in between. The period in which
// they lie is guessed, narrowly at first, and widened if fewer rows are found than there must be.
// So no row is missed and none comes twice, whatever the clocks say.

// lookbacks are how far back new rows are looked for, one after the other; the last is everything.
var lookbacks = []time.Duration{5 * time.Minute, 6 * time.Hour, 7 * 24 * time.Hour, 0}

// maxBatch bounds the new rows of a chain that are read at once.
const maxBatch = 2000

// pollInterval is how often the log is queried without a notification: finished tasks cause
// notifications, other events do not.
const pollInterval = 500 * time.Millisecond

// Handler receives what a follower finds.
type Handler struct {
	Row         func(*Row) error
	Started     func()                           // the first rows were read, and from now on none is missed; may be nil
	Missing     func(chain string, rows int64)   // rows that audit_chains counts do not exist
	Unavailable func(err error, again time.Time) // Postgres does not answer; it is tried again
}

// Follow calls out.Row with the last f.Limit rows that match, then with each new one, until ctx
// ends (nil) or out.Row returns an error. While Postgres is away it waits; what was written
// meanwhile follows.
func (l *Reader) Follow(ctx context.Context, f Filter, out Handler) error {
	if _, _, err := f.conditions(nil); err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	listening, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	defer func() {
		stop()
		<-ended
	}()
	go func() {
		defer close(ended)
		wake := func() {
			select {
			case changed <- struct{}{}:
			default: // it is awake
			}
		}
		pg.Listen(listening, l.pool, pg.ListenOptions{Channel: pg.ResultsChannel, Quiet: pollInterval, Logger: slog.New(slog.DiscardHandler),
			Notified: func(string) { wake() }, Missed: wake})
	}()
	var seen map[audit.TopicPartition]int64
	wait := pg.NewBackoff()
	for ctx.Err() == nil {
		var more bool
		err := l.snapshot(ctx, func(tx pgx.Tx) (err error) {
			if seen == nil {
				if seen, err = l.showLast(ctx, tx, &f, out); err == nil && out.Started != nil {
					out.Started()
				}
				return err
			}
			more, err = l.showNew(ctx, tx, &f, seen, out)
			return err
		})
		var ours *followerError
		switch {
		case errors.As(err, &ours):
			return ours.err
		case err != nil && ctx.Err() == nil:
			if pg.IsPermanent(err) {
				return err
			}
			pauseFor := wait.NextBackOff()
			out.Unavailable(err, time.Now().Add(pauseFor))
			_ = pg.Sleep(ctx, pauseFor, nil)
		case !more:
			wait.Reset()
			// A standby cannot listen, and a connection may be lost: then the timeout wakes.
			_ = pg.Sleep(ctx, 4*pollInterval, changed)
		}
	}
	return nil
}

// followerError is an error of the handler.
type followerError struct{ err error }

func (e *followerError) Error() string { return e.err.Error() }

// readChains reads the number of rows of each chain.
func readChains(ctx context.Context, tx pgx.Tx) (map[audit.TopicPartition]int64, error) {
	rows, err := tx.Query(ctx, "SELECT topic, partition, rows FROM audit_chains")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[audit.TopicPartition]int64{}
	for rows.Next() {
		var at audit.TopicPartition
		var n int64
		if err := rows.Scan(&at.Topic, &at.Partition, &n); err != nil {
			return nil, err
		}
		out[at] = n
	}
	return out, rows.Err()
}

// showLast passes on the last rows that exist already, and returns the ends of the chains.
func (l *Reader) showLast(ctx context.Context, tx pgx.Tx, f *Filter, out Handler) (map[audit.TopicPartition]int64, error) {
	seen, err := readChains(ctx, tx)
	if err != nil || f.Limit <= 0 {
		return seen, err
	}
	spans, err := spans(ctx, tx, f)
	if err != nil {
		return nil, err
	}
	var rows []*Row
	for _, s := range spans {
		_, err := f.read(ctx, tx, s, f.Limit-len(rows), func(r *Row) error {
			rows = append(rows, r)
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(rows) >= f.Limit {
			break
		}
	}
	slices.Reverse(rows)
	for _, r := range rows {
		if err := out.Row(r); err != nil {
			return nil, &followerError{err}
		}
	}
	return seen, nil
}

// gap is a range of rows of a chain that were not seen yet.
type gap struct{ after, upTo int64 }

// showNew passes on the new rows; more says that there are more than were read at once.
func (l *Reader) showNew(ctx context.Context, tx pgx.Tx, f *Filter, seen map[audit.TopicPartition]int64, out Handler) (more bool, err error) {
	now, err := readChains(ctx, tx)
	if err != nil {
		return false, err
	}
	gaps := map[audit.TopicPartition]gap{}
	var expected int64
	for at, end := range now {
		from := seen[at]
		if end <= from {
			seen[at] = end // fewer: a backup was restored, and numbers are used again
			continue
		}
		g := gap{from, min(end, from+maxBatch)}
		more = more || g.upTo < end
		gaps[at] = g
		expected += g.upTo - g.after
	}
	if len(gaps) == 0 {
		return false, nil
	}
	var found []*followed
	for _, back := range lookbacks {
		if found, err = l.readGaps(ctx, tx, f, gaps, back); err != nil {
			return false, err
		}
		if int64(len(found)) >= expected {
			break
		}
	}
	if int64(len(found)) < expected {
		reportMissing(gaps, found, out)
	}
	// Only now: if the connection had been lost before, nothing would have been passed on.
	for _, r := range found {
		if r.wanted {
			if err := out.Row(&r.Row); err != nil {
				return false, &followerError{err}
			}
		}
	}
	for at, g := range gaps {
		seen[at] = g.upTo
	}
	return more, nil
}

func reportMissing(gaps map[audit.TopicPartition]gap, found []*followed, out Handler) {
	have := map[audit.TopicPartition]int64{}
	for _, r := range found {
		have[audit.TopicPartition{Topic: r.SrcTopic, Partition: int32(r.SrcPartition)}]++
	}
	for at, g := range gaps {
		if missing := g.upTo - g.after - have[at]; missing > 0 {
			out.Missing(at.String(), missing)
		}
	}
}

type followed struct {
	Row
	wanted bool
}

// readGaps reads the rows of gaps that are not older than back (0: all), in the order of time.
func (l *Reader) readGaps(ctx context.Context, tx pgx.Tx, f *Filter, gaps map[audit.TopicPartition]gap, back time.Duration) ([]*followed, error) {
	var topics []string
	var parts []int32
	var after, upTo []int64
	for at, g := range gaps {
		topics, parts, after, upTo = append(topics, at.Topic), append(parts, at.Partition), append(after, g.after), append(upTo, g.upTo)
	}
	where, args, err := f.conditions([]any{topics, parts, after, upTo})
	if err != nil {
		return nil, err
	}
	for _, b := range []struct {
		op string
		at time.Time
	}{{">=", f.Since}, {"<", f.Until}} {
		if !b.at.IsZero() {
			args = append(args, b.at)
			where = append(where, fmt.Sprintf("a.time %s $%d", b.op, len(args)))
		}
	}
	wanted := "true"
	if len(where) > 0 {
		wanted = "(" + strings.Join(where, " AND ") + ") IS TRUE"
	}
	sql := "SELECT " + selectedColumns + ", " + wanted + ` FROM audit_log a
		JOIN unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[]) AS u (topic, partition, after, up_to)
		ON a.src_topic = u.topic AND a.src_partition = u.partition AND a.chain_seq > u.after AND a.chain_seq <= u.up_to`
	if back > 0 {
		args = append(args, time.Now().Add(-back))
		sql += fmt.Sprintf(" WHERE a.time >= $%d", len(args))
	}
	rows, err := tx.Query(ctx, sql+" ORDER BY a.time, a.src_topic, a.src_partition, a.src_offset, a.src_index", args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*followed, error) {
		r := &followed{}
		return r, row.Scan(append(r.targets(), &r.wanted)...)
	})
}
