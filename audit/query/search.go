// Package query reads the audit log for people: searches, follows and measures it, and converts its
// rows to text and to OCSF. It needs no more than the role batchyard_auditor may do.
package query

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

// Filter selects rows of the audit log. In a text, an asterisk matches any characters. Empty: any.
type Filter struct {
	Tenant  string
	Task    string
	Job     string
	Batch   string
	Device  string
	Actions []string // one of these has to match
	Actor   string
	Source  string // also matches without the port, or the position in a topic, at its end
	Outcome string
	Class   string
	Model   string
	Trace   string
	Since   time.Time // of the event; zero: no bound
	Until   time.Time // exclusive; zero: no bound
	Limit   int       // maximum number of rows; 0: all
	Oldest  bool      // oldest first; otherwise newest first
}

// ExpandActions returns the actions that names and patterns match, or an error about one that
// matches none.
func ExpandActions(patterns []string) ([]string, error) {
	var out []string
	for _, p := range patterns {
		found := false
		for _, a := range task.Actions {
			if ok, err := path.Match(p, string(a.Action)); err == nil && ok {
				found = true
				out = append(out, string(a.Action))
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown action %q: use a name or a pattern, such as task.accepted, callback.* or *.failed", p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// conditions returns the filter as SQL conditions, without its times, and args with what they refer
// to.
func (f *Filter) conditions(args []any) (where []string, _ []any, err error) {
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	for _, c := range []struct{ column, value string }{
		{"tenant", f.Tenant}, {"task_id", f.Task}, {"job_id", f.Job}, {"batch_id", f.Batch}, {"device_id", f.Device}, {"actor_id", f.Actor},
		{"outcome", f.Outcome}, {"error_class", f.Class}, {"model", f.Model}, {"trace_id", f.Trace},
	} {
		switch {
		case c.value == "":
		case strings.Contains(c.value, "*"):
			where = append(where, "a."+c.column+" LIKE "+arg(likeOf(c.value)))
		default:
			where = append(where, "a."+c.column+" = "+arg(c.value))
		}
	}
	switch {
	case f.Source == "":
	case strings.Contains(f.Source, "*"):
		where = append(where, "a.source_addr LIKE "+arg(likeOf(f.Source)))
	default:
		where = append(where, fmt.Sprintf("(a.source_addr = %s OR a.source_addr LIKE %s OR a.source_addr LIKE %s)",
			arg(f.Source), arg(likeOf(f.Source+":*")), arg(likeOf(f.Source+"/*"))))
	}
	if len(f.Actions) > 0 {
		actions, err := ExpandActions(f.Actions)
		if err != nil {
			return nil, nil, err
		}
		where = append(where, "a.action = ANY("+arg(actions)+")")
	}
	return where, args, nil
}

// likeOf returns the LIKE pattern of a pattern with asterisks.
func likeOf(s string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`).Replace(s)
}

// Reader reads the audit log. Its login needs to read audit_log, and audit_chains to follow the
// log, as the role batchyard_auditor may.
type Reader struct{ pool *pgxpool.Pool }

// NewReader returns a reader. The caller closes the pool.
func NewReader(pool *pgxpool.Pool) *Reader { return &Reader{pool} }

// maxSpan is the longest period that is read by one query: it bounds what is sorted at once, and a
// search that has found enough reads no more of the log.
const maxSpan = 24 * time.Hour

// Search calls fn with each row that matches, in the order of time, all from one snapshot, until fn
// returns an error, which it returns. Memory does not grow with the number of rows.
func (l *Reader) Search(ctx context.Context, f Filter, fn func(*Row) error) error {
	if _, _, err := f.conditions(nil); err != nil {
		return err
	}
	return l.snapshot(ctx, func(tx pgx.Tx) error {
		left := f.Limit
		if f.Task != "" && !strings.Contains(f.Task, "*") { // there is an index for that: no need to go through the periods
			_, err := f.read(ctx, tx, span{f.Since, f.Until}, left, fn)
			return err
		}
		spans, err := spans(ctx, tx, &f)
		if err != nil {
			return err
		}
		for _, s := range spans {
			n, err := f.read(ctx, tx, s, left, fn)
			if err != nil {
				return err
			}
			if f.Limit > 0 {
				if left -= n; left <= 0 {
					return nil
				}
			}
		}
		return nil
	})
}

// snapshot runs fn on one snapshot of the database. Every partition is locked against being dropped
// meanwhile, as by any query.
func (l *Reader) snapshot(ctx context.Context, fn func(pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT FROM audit_log LIMIT 0"); err != nil {
			return err
		}
		return fn(tx)
	})
	var ours *callerError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return ours.err
	}
	return fmt.Errorf("reading the audit log: %w", err)
}

// callerError is an error of the caller's function; it is returned as it is.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }
func (e *callerError) Unwrap() error { return e.err }

// read calls fn with the rows of a period, at most limit of them (0: all), and returns their number.
func (f *Filter) read(ctx context.Context, tx pgx.Tx, s span, limit int, fn func(*Row) error) (n int, err error) {
	where, args, err := f.conditions(nil)
	if err != nil {
		return 0, err
	}
	for _, b := range []struct {
		op string
		at time.Time
	}{{">=", s.from}, {"<", s.to}} {
		if !b.at.IsZero() {
			args = append(args, b.at)
			where = append(where, fmt.Sprintf("a.time %s $%d", b.op, len(args)))
		}
	}
	sql := "SELECT " + selectedColumns + " FROM audit_log a"
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	order := " DESC"
	if f.Oldest {
		order = ""
	}
	sql += " ORDER BY a.time" + order
	for _, c := range []string{"src_topic", "src_partition", "src_offset", "src_index"} {
		sql += ", a." + c + order
	}
	if limit > 0 {
		sql += fmt.Sprintf(" LIMIT %d", limit)
	}
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var r Row
		if err := rows.Scan(r.targets()...); err != nil {
			return n, err
		}
		n++
		if err := fn(&r); err != nil {
			return n, &callerError{err}
		}
	}
	return n, rows.Err()
}

// span is a period; zero times are no bounds.
type span struct{ from, to time.Time }

// spans divides the period of a search into parts that are read one after the other: single days,
// as the log is partitioned, and the nearest day into smaller parts, because most searches find
// enough there.
func spans(ctx context.Context, tx pgx.Tx, f *Filter) ([]span, error) {
	days, err := partitionDays(ctx, tx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	cuts := []time.Time{now.Add(-time.Hour), now.Add(-6 * time.Hour)}
	for _, d := range days {
		cuts = append(cuts, d, d.Add(maxSpan))
	}
	cuts = slices.DeleteFunc(cuts, func(t time.Time) bool {
		return !f.Since.IsZero() && !t.After(f.Since) || !f.Until.IsZero() && !t.Before(f.Until)
	})
	slices.SortFunc(cuts, time.Time.Compare)
	cuts = slices.CompactFunc(cuts, time.Time.Equal)
	// The default partition has rows from before the first day and after the last.
	var spans []span
	from := f.Since
	for _, c := range cuts {
		spans = append(spans, span{from, c})
		from = c
	}
	spans = append(spans, span{from, f.Until})
	if !f.Oldest {
		slices.Reverse(spans)
	}
	return spans, nil
}

const partitionDaysSQL = `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$' ORDER BY 1`

// partitionDays returns the days that have a partition.
func partitionDays(ctx context.Context, tx pgx.Tx) ([]time.Time, error) {
	rows, err := tx.Query(ctx, partitionDaysSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the partitions: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing the partitions: %w", err)
	}
	var days []time.Time
	for _, name := range names {
		if at, err := time.Parse(audit.PartitionLayout, name); err == nil {
			days = append(days, at)
		}
	}
	return days, nil
}
