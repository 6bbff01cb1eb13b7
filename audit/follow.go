package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/batchyard/batchyard/internal/pglisten"
)

// Following the log: rows become visible in the order of commits, which is neither
// that of their times nor that of ingested_at. But within a chain they are numbered
// without gaps, and committed in that order. So who follows notes the number of the
// last row of each chain, learns from audit_chains how many there are now, and asks
// for exactly those between. Where the time of these rows lies is guessed, closely
// at first; when fewer come than there must be, the guess is widened. So none is
// missed and none comes twice, whatever the clocks say.

// guesses are how far back the new rows of a chain are looked for; the last one is
// everything.
var guesses = []time.Duration{5 * time.Minute, 6 * time.Hour, 7 * 24 * time.Hour, 0}

// mostAtOnce bounds the new rows of a chain that are read at once.
const mostAtOnce = 2000

// quietLook is how often the log is looked at when nothing tells of new rows:
// results are told of by a notification, other events are not.
const quietLook = 500 * time.Millisecond

// Followed tells who follows.
type Followed struct {
	Row   func(*LogRow) error
	Begun func()                           // from now on none is missed; may be nil
	Gone  func(chain string, rows int64)   // rows that should be there are not
	Away  func(err error, again time.Time) // Postgres does not answer; it is tried again
}

// Follow calls out.Row with the last rows that are wanted, as many as f.Limit, and
// then with each new one, until ctx ends (nil) or out.Row fails. While Postgres is away it
// waits; what came meanwhile follows.
func (l *Log) Follow(ctx context.Context, f Search, out Followed) error {
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
		pglisten.Listen(listening, l.pool, pglisten.Options{Channel: ResultsChannel, Quiet: quietLook, Log: slog.New(slog.DiscardHandler),
			Changed: func(string, bool) {
				select {
				case changed <- struct{}{}:
				default: // it will look anyway
				}
			}})
	}()
	var seen chains
	wait := newBackoff()
	for ctx.Err() == nil {
		var more bool
		err := l.snapshot(ctx, func(tx pgx.Tx) (err error) {
			if seen == nil {
				if seen, err = l.last(ctx, tx, &f, out); err == nil && out.Begun != nil {
					out.Begun()
				}
				return err
			}
			more, err = l.fresh(ctx, tx, &f, seen, out)
			return err
		})
		var ours *followerError
		switch {
		case errors.As(err, &ours):
			return ours.err
		case err != nil && ctx.Err() == nil:
			if forGood(err) {
				return err
			}
			pauseFor := wait.NextBackOff()
			out.Away(err, time.Now().Add(pauseFor))
			sleep(ctx, pauseFor, nil)
		case !more:
			wait.Reset()
			// A replica cannot listen, and a connection may be lost: then the clock wakes.
			sleep(ctx, 4*quietLook, changed)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-woken:
	case <-ctx.Done():
	}
}

// followerError is an error of who follows.
type followerError struct{ err error }

func (e *followerError) Error() string { return e.err.Error() }

// readChains reads where all chains end.
func readChains(ctx context.Context, tx pgx.Tx) (chains, error) {
	rows, err := tx.Query(ctx, "SELECT topic, partition, rows FROM audit_chains")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := chains{}
	for rows.Next() {
		var at place
		var n int64
		if err := rows.Scan(&at.topic, &at.partition, &n); err != nil {
			return nil, err
		}
		out[at] = &chain{rows: n}
	}
	return out, rows.Err()
}

// last shows the last rows that are there already, and notes where the chains end.
func (l *Log) last(ctx context.Context, tx pgx.Tx, f *Search, out Followed) (chains, error) {
	seen, err := readChains(ctx, tx)
	if err != nil || f.Limit <= 0 {
		return seen, err
	}
	where, args, err := f.conditions(nil)
	if err != nil {
		return nil, err
	}
	spans, err := spansOf(ctx, tx, f)
	if err != nil {
		return nil, err
	}
	var rows []*LogRow
	for _, s := range spans {
		_, err := l.window(ctx, tx, f, where, args, s.from, s.to, f.Limit-len(rows), func(r *LogRow) error {
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

// gap is rows of a chain that were not seen yet.
type gap struct{ after, upTo int64 }

// fresh shows what is new; more says that there is more than was read at once.
func (l *Log) fresh(ctx context.Context, tx pgx.Tx, f *Search, seen chains, out Followed) (more bool, err error) {
	now, err := readChains(ctx, tx)
	if err != nil {
		return false, err
	}
	gaps := map[place]gap{}
	var expected int64
	for at, end := range now {
		var from int64
		if s := seen[at]; s != nil {
			from = s.rows
		}
		if end.rows <= from {
			if s := seen[at]; s != nil {
				s.rows = end.rows // fewer: an older state was restored, and numbers come again
			}
			continue
		}
		g := gap{from, min(end.rows, from+mostAtOnce)}
		more = more || g.upTo < end.rows
		gaps[at] = g
		expected += g.upTo - g.after
	}
	if len(gaps) == 0 {
		return false, nil
	}
	var found []*followed
	for _, back := range guesses {
		if found, err = l.between(ctx, tx, f, gaps, back); err != nil {
			return false, err
		}
		if int64(len(found)) >= expected {
			break
		}
	}
	if int64(len(found)) < expected {
		tellGone(gaps, found, out)
	}
	// Only now: a connection that is lost before has shown nothing.
	for _, r := range found {
		if r.wanted {
			if err := out.Row(&r.LogRow); err != nil {
				return false, &followerError{err}
			}
		}
	}
	for at, g := range gaps {
		seen[at] = &chain{rows: g.upTo}
	}
	return more, nil
}

func tellGone(gaps map[place]gap, found []*followed, out Followed) {
	have := map[place]int64{}
	for _, r := range found {
		have[place{r.SrcTopic, int32(r.SrcPartition)}]++
	}
	for at, g := range gaps {
		if missing := g.upTo - g.after - have[at]; missing > 0 {
			out.Gone(fmt.Sprintf("%s/%d", at.topic, at.partition), missing)
		}
	}
}

type followed struct {
	LogRow
	wanted bool
}

// between reads the rows of gaps whose time is not longer ago than so, in the order
// of time.
func (l *Log) between(ctx context.Context, tx pgx.Tx, f *Search, gaps map[place]gap, back time.Duration) ([]*followed, error) {
	var topics []string
	var parts []int32
	var after, upTo []int64
	for at, g := range gaps {
		topics, parts, after, upTo = append(topics, at.topic), append(parts, at.partition), append(after, g.after), append(upTo, g.upTo)
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
	sql := "SELECT " + logColumns + ", " + wanted + ` FROM audit_log a
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

// forGood reports whether trying again is of no use: Postgres has answered, and
// says that what was asked is not allowed or not there.
func forGood(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && len(pg.Code) == 5 && (pg.Code[:2] == "42" || pg.Code[:2] == "28" || pg.Code[:2] == "3D")
}
