package audit

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

	"github.com/batchyard/batchyard/task"
)

// Search says which rows of the audit log are wanted. Texts are taken as they are;
// one with an asterisk stands for any text in its place. Empty: any.
type Search struct {
	Tenant  string
	Task    string
	Job     string
	Batch   string
	Device  string
	Actions []string // of these one has to fit
	Actor   string
	Source  string // also without the port or the partition that it ends with
	Outcome string
	Class   string
	Model   string
	Trace   string
	Since   time.Time // of the event; zero: the first
	Until   time.Time // not included; zero: no end
	Limit   int       // rows; 0: all
	Oldest  bool      // oldest first, otherwise newest first
}

// ExpandActions makes the actions that a list of names and patterns stands for. An
// error names one that stands for none.
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
			return nil, fmt.Errorf("there is no action %q; use a name or a pattern, such as task.accepted, callback.* or *.failed", p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// LogRow is one row of the audit log, as it is.
type LogRow struct {
	Time         time.Time `json:"time"`
	IngestedAt   time.Time `json:"ingested_at"`
	Tenant       string    `json:"tenant,omitempty"`
	ActorType    string    `json:"actor_type"`
	ActorID      string    `json:"actor_id"`
	SourceAddr   string    `json:"source_addr,omitempty"`
	UserAgent    string    `json:"user_agent,omitempty"`
	Action       string    `json:"action"`
	ResourceType string    `json:"resource_type,omitempty"`
	ResourceID   string    `json:"resource_id,omitempty"`
	Outcome      string    `json:"outcome"`
	ErrorClass   string    `json:"error_class,omitempty"`
	TaskID       string    `json:"task_id,omitempty"`
	JobID        string    `json:"job_id,omitempty"`
	BatchID      string    `json:"batch_id,omitempty"`
	DeviceID     string    `json:"device_id,omitempty"`
	Attempt      int       `json:"attempt,omitempty"`
	TraceID      string    `json:"trace_id,omitempty"`
	DurationMS   float64   `json:"duration_ms,omitempty"`
	Model        string    `json:"model,omitempty"`
	TokensIn     int64     `json:"input_tokens,omitempty"`
	TokensOut    int64     `json:"output_tokens,omitempty"`
	InputSHA256  Hex       `json:"input_sha256,omitempty"`
	InputBytes   int64     `json:"input_bytes,omitempty"`
	OutputSHA256 Hex       `json:"output_sha256,omitempty"`
	OutputBytes  int64     `json:"output_bytes,omitempty"`
	Detail       Raw       `json:"detail,omitempty"`
	SrcTopic     string    `json:"src_topic"`
	SrcPartition int       `json:"src_partition"`
	SrcOffset    int64     `json:"src_offset"`
	SrcIndex     int       `json:"src_index"`
	ChainSeq     int64     `json:"chain_seq,omitempty"`
	PrevHash     Hex       `json:"prev_hash,omitempty"`
	RowHash      Hex       `json:"row_hash,omitempty"`
}

const logColumns = `a.time, a.ingested_at, a.tenant, a.actor_type, a.actor_id, coalesce(a.source_addr, ''), coalesce(a.user_agent, ''), a.action,
	coalesce(a.resource_type, ''), coalesce(a.resource_id, ''), a.outcome, coalesce(a.error_class, ''), coalesce(a.task_id, ''),
	coalesce(a.job_id, ''), coalesce(a.batch_id, ''), coalesce(a.device_id, ''), coalesce(a.attempt, 0), coalesce(a.trace_id, ''),
	coalesce(a.duration_ms, 0), coalesce(a.model, ''), coalesce(a.input_tokens, 0), coalesce(a.output_tokens, 0), a.input_sha256,
	coalesce(a.input_bytes, 0), a.output_sha256, coalesce(a.output_bytes, 0), a.detail::text,
	a.src_topic, a.src_partition, a.src_offset, a.src_index, coalesce(a.chain_seq, 0), a.prev_hash, a.row_hash`

func (r *LogRow) targets() []any {
	return []any{when{&r.Time}, when{&r.IngestedAt}, &r.Tenant, &r.ActorType, &r.ActorID, &r.SourceAddr, &r.UserAgent, &r.Action,
		&r.ResourceType, &r.ResourceID, &r.Outcome, &r.ErrorClass, &r.TaskID, &r.JobID, &r.BatchID, &r.DeviceID, &r.Attempt, &r.TraceID,
		&r.DurationMS, &r.Model, &r.TokensIn, &r.TokensOut, (*[]byte)(&r.InputSHA256), &r.InputBytes, (*[]byte)(&r.OutputSHA256), &r.OutputBytes,
		(*[]byte)(&r.Detail), &r.SrcTopic, &r.SrcPartition, &r.SrcOffset, &r.SrcIndex, &r.ChainSeq, (*[]byte)(&r.PrevHash), (*[]byte)(&r.RowHash)}
}

// conditions writes a search as SQL, without its times. Arguments are appended.
func (f *Search) conditions(args []any) (where []string, _ []any, err error) {
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

// likeOf makes a pattern of LIKE from one with asterisks.
func likeOf(s string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`).Replace(s)
}

// Log reads the audit log for people. Its login needs to read audit_log, and
// audit_chains to follow it: the role batchyard_auditor.
type Log struct{ pool *pgxpool.Pool }

// NewLog returns a reader of the audit log.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool} }

// step is how long a time is read at once, at most. What is sorted at once is
// bounded by it, and a search that has found enough reads no more of the log.
const step = 24 * time.Hour

// Search calls fn with each row that is wanted, in order of time, all of one
// moment of the log. Memory does not grow with the number of rows. An error of fn
// ends it and is returned.
func (l *Log) Search(ctx context.Context, f Search, fn func(*LogRow) error) error {
	where, args, err := f.conditions(nil)
	if err != nil {
		return err
	}
	return l.snapshot(ctx, func(tx pgx.Tx) error {
		left := f.Limit
		if f.Task != "" && !strings.Contains(f.Task, "*") { // there is an index for that: no need to go through the times
			_, err := l.window(ctx, tx, &f, where, args, f.Since, f.Until, left, fn)
			return err
		}
		spans, err := spansOf(ctx, tx, &f)
		if err != nil {
			return err
		}
		for _, s := range spans {
			n, err := l.window(ctx, tx, &f, where, args, s.from, s.to, left, fn)
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

// snapshot runs fn on one moment of the database. Every partition is locked against
// being dropped meanwhile, as any query would do.
func (l *Log) snapshot(ctx context.Context, fn func(pgx.Tx) error) error {
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

// callerError is an error of who is called with the rows; it is not ours to explain.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }
func (e *callerError) Unwrap() error { return e.err }

// window reads the rows of a time; zero times are no bounds.
func (l *Log) window(ctx context.Context, tx pgx.Tx, f *Search, where []string, args []any, from, to time.Time, limit int, fn func(*LogRow) error) (n int, err error) {
	where, args = slices.Clone(where), slices.Clone(args)
	for _, b := range []struct {
		op string
		at time.Time
	}{{">=", from}, {"<", to}} {
		if !b.at.IsZero() {
			args = append(args, b.at)
			where = append(where, fmt.Sprintf("a.time %s $%d", b.op, len(args)))
		}
	}
	sql := "SELECT " + logColumns + " FROM audit_log a"
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
		var r LogRow
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

type timeSpan struct{ from, to time.Time }

// spansOf divides the time of a search into parts that are read one after the
// other: single days, as the log is partitioned, and the nearest day into smaller
// ones, because most searches have enough of them.
func spansOf(ctx context.Context, tx pgx.Tx, f *Search) ([]timeSpan, error) {
	days, err := partitionDays(ctx, tx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	cuts := []time.Time{now.Add(-time.Hour), now.Add(-6 * time.Hour)}
	for _, d := range days {
		cuts = append(cuts, d, d.Add(step))
	}
	cuts = slices.DeleteFunc(cuts, func(t time.Time) bool {
		return !f.Since.IsZero() && !t.After(f.Since) || !f.Until.IsZero() && !t.Before(f.Until)
	})
	slices.SortFunc(cuts, time.Time.Compare)
	cuts = slices.CompactFunc(cuts, time.Time.Equal)
	// Before the first day and after the last is what the default partition holds.
	var spans []timeSpan
	from := f.Since
	for _, c := range cuts {
		spans = append(spans, timeSpan{from, c})
		from = c
	}
	spans = append(spans, timeSpan{from, f.Until})
	if !f.Oldest {
		slices.Reverse(spans)
	}
	return spans, nil
}

const partitionDaysSQL = `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$' ORDER BY 1`

// partitionDays are the days that have a partition.
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
		if at, err := time.Parse("audit_log_20060102", name); err == nil {
			days = append(days, at)
		}
	}
	return days, nil
}
