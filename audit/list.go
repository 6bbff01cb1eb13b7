package audit

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/batchyard/batchyard/task"
)

type pgxTime = pgtype.Timestamptz

// Bounds of a page.
const (
	DefaultLimit = 50
	MaxLimit     = 1000
)

// Filter says which tasks to list. The tenant is required.
type Filter struct {
	Tenant string
	State  task.State // empty: any
	Job    string     // empty: any
	Limit  int        // rows of a page; 0: DefaultLimit, at most MaxLimit
	Cursor string     // from the page before; empty: the first
}

// ErrBadCursor says that a cursor is none of ours.
var ErrBadCursor = errors.New("the cursor is none of ours: pass on the one of the page before, or leave it out for the first page")

// cursor is the last row of a page: the next one begins after it.
type cursor struct {
	at time.Time
	id string
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(append(binary.BigEndian.AppendUint64(nil, uint64(c.at.UnixMicro())), c.id...))
}

func parseCursor(s string) (c cursor, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < 9 || len(b) > 8+4*task.MaxIDLength {
		return c, ErrBadCursor
	}
	c.at, c.id = time.UnixMicro(int64(binary.BigEndian.Uint64(b))), string(b[8:])
	if checkKey("x", c.id) != nil || checkTime("cursor", c.at) != nil {
		return c, ErrBadCursor
	}
	return c, nil
}

// Tasks lists tasks without their results, the latest submitted first; those of a
// job by their ids, the last first. next is the cursor of the page that follows; empty
// when there is none.
func (s *Store) Tasks(ctx context.Context, f Filter) (rows []TaskRow, next string, err error) {
	if f.Tenant == "" {
		return nil, "", &task.FieldError{Field: "tenant", Problem: "it is missing", Remedy: "name the tenant whose tasks to list"}
	}
	if f.Limit < 0 || f.Limit > MaxLimit {
		return nil, "", &task.FieldError{Field: "limit", Problem: fmt.Sprintf("%d is out of range", f.Limit), Remedy: fmt.Sprintf("use 1 to %d", MaxLimit)}
	}
	f.Limit = cmp.Or(f.Limit, DefaultLimit)
	where, args := []string{"t.tenant = $1"}, []any{f.Tenant}
	and := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		where = append(where, condition)
	}
	from := "tasks t WHERE %s"
	switch {
	case f.State != "":
		and("t.state = ?", string(f.State))
	case f.Job == "":
		// The newest of each state, of which the newest of all: the index begins with the state.
		args = append(args, task.States)
		from = fmt.Sprintf("unnest($%d::text[]) AS s (state) CROSS JOIN LATERAL (SELECT * FROM tasks t WHERE t.state = s.state AND %%s %%s) t", len(args))
	}
	order := "t.submitted_at DESC, t.task_id DESC"
	if f.Job != "" {
		and("t.job_id = ?", f.Job)
		order = "t.task_id DESC" // as its index has them
	}
	if f.Cursor != "" {
		c, err := parseCursor(f.Cursor)
		switch {
		case err != nil:
			return nil, "", err
		case f.Job != "":
			and("t.task_id < ?", c.id)
		default:
			and("(t.submitted_at, t.task_id) < (?::timestamptz, ?)", c.at, c.id)
		}
	}
	args = append(args, f.Limit+1) // one more tells whether there is a next page
	newest := fmt.Sprintf("ORDER BY %s LIMIT $%d", order, len(args))
	from = strings.Replace(strings.Replace(from, "%s", strings.Join(where, " AND "), 1), "%s", newest, 1)
	got, err := s.pool.Query(ctx, "SELECT "+taskColumns+" FROM "+from+" "+newest, args...)
	if err == nil {
		rows, err = pgx.CollectRows(got, func(r pgx.CollectableRow) (row TaskRow, err error) {
			err = r.Scan(row.targets()...)
			return row, err
		})
	}
	if err != nil {
		return nil, "", fmt.Errorf("listing tasks of %s: %w", f.Tenant, err)
	}
	if len(rows) > f.Limit {
		rows = rows[:f.Limit]
		last := rows[f.Limit-1]
		next = cursor{last.SubmittedAt, last.ID}.String()
	}
	return rows, next, nil
}

// JobCounts says how far the tasks of a job are.
type JobCounts struct {
	Total    int64
	ByState  map[task.State]int64
	ByDevice map[string]int64 // tasks that have ended, by the device that was asked last
}

// JobCounts counts the tasks of a job that Postgres knows.
func (s *Store) JobCounts(ctx context.Context, tenant, job string) (JobCounts, error) {
	c := JobCounts{ByState: map[task.State]int64{}, ByDevice: map[string]int64{}}
	rows, err := s.pool.Query(ctx, `SELECT state, coalesce(device_id, ''), count(*) FROM tasks WHERE tenant = $1 AND job_id = $2 GROUP BY 1, 2`, tenant, job)
	if err != nil {
		return c, fmt.Errorf("counting the tasks of job %s: %w", job, err)
	}
	defer rows.Close()
	for rows.Next() {
		var state task.State
		var device string
		var n int64
		if err := rows.Scan(&state, &device, &n); err != nil {
			return c, fmt.Errorf("counting the tasks of job %s: %w", job, err)
		}
		c.Total += n
		c.ByState[state] += n
		if state.Terminal() && device != "" {
			c.ByDevice[device] += n
		}
	}
	if err := rows.Err(); err != nil {
		return c, fmt.Errorf("counting the tasks of job %s: %w", job, err)
	}
	return c, nil
}

// jobPage is how many results are read by one query. Between pages no
// connection is held, however slow the reader is.
const (
	jobPage      = 500
	jobPageBytes = 8 << 20
)

// JobResults calls fn with each result of a job, in the order of the task ids.
// An error of fn ends it and is returned.
func (s *Store) JobResults(ctx context.Context, tenant, job string, fn func(*task.Result) error) error {
	after := ""
	for {
		page, more, err := s.jobPage(ctx, tenant, job, after)
		if err != nil {
			return fmt.Errorf("reading the results of job %s: %w", job, err)
		}
		for _, r := range page {
			if err := fn(r); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		after = page[len(page)-1].TaskID
	}
}

// jobPage reads a page, bounded by rows and by bytes.
func (s *Store) jobPage(ctx context.Context, tenant, job, after string) (page []*task.Result, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what is left of a page that is full by bytes
	// The state of a task is written with its result, in one transaction. Each result is
	// looked up by its key (OFFSET 0 keeps the planner to it): a join of the two tables in the order of
	// their keys begins with the tenant's first result, for every page.
	rows, err := s.pool.Query(ctx, `SELECT `+resultColumns+` FROM tasks t
		CROSS JOIN LATERAL (SELECT * FROM results r WHERE r.tenant = t.tenant AND r.task_id = t.task_id OFFSET 0) r
		WHERE t.tenant = $1 AND t.job_id = $2 AND t.task_id > $3 AND t.seq = $4 ORDER BY t.task_id LIMIT $5`, tenant, job, after, task.TerminalSequence, jobPage)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	size := 0
	for rows.Next() {
		row := &resultRow{}
		if err := rows.Scan(row.targets()...); err != nil {
			return nil, false, err
		}
		r, err := row.result()
		if err != nil {
			return nil, false, err
		}
		page = append(page, r)
		if size += len(r.Output); size > jobPageBytes {
			return page, true, nil
		}
	}
	return page, len(page) == jobPage, rows.Err()
}

// EventRow is one row of the audit log.
type EventRow struct {
	task.Event
	IngestedAt time.Time
	Topic      string // of the record that it was made from
	Partition  int
	Offset     int64
	Index      int
}

// MaxTimeline bounds what Events returns.
const MaxTimeline = 10_000

// Events returns the timeline of a task: its audit rows in the order in which
// things happened.
func (s *Store) Events(ctx context.Context, k task.Key) ([]EventRow, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT time, ingested_at, tenant, actor_type, actor_id, coalesce(source_addr, ''), coalesce(user_agent, ''), action,
			coalesce(resource_type, ''), coalesce(resource_id, ''), outcome, coalesce(error_class, ''), coalesce(task_id, ''),
			coalesce(job_id, ''), coalesce(batch_id, ''), coalesce(device_id, ''), coalesce(attempt, 0), coalesce(trace_id, ''),
			coalesce(duration_ms, 0), coalesce(model, ''), coalesce(input_tokens, 0), coalesce(output_tokens, 0), input_sha256,
			coalesce(input_bytes, 0), output_sha256, coalesce(output_bytes, 0), detail::text,
			src_topic, src_partition, src_offset, src_index
		FROM task_timeline WHERE tenant = $1 AND task_id = $2
		ORDER BY time, src_topic, src_partition, src_offset, src_index LIMIT $3`, k.Tenant, k.ID, MaxTimeline)
	if err != nil {
		return nil, fmt.Errorf("reading the events of task %s: %w", k, err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (e EventRow, err error) {
		var ms float64
		err = r.Scan(when{&e.Time}, when{&e.IngestedAt}, &e.Tenant, &e.ActorType, &e.ActorID, &e.SourceAddr, &e.UserAgent, &e.Action,
			&e.ResourceType, &e.ResourceID, &e.Outcome, &e.ErrorClass, &e.TaskID, &e.Job, &e.Batch, &e.Device, &e.Attempt, &e.TraceID,
			&ms, &e.Model, &e.TokensIn, &e.TokensOut, &e.InputSHA256, &e.InputSize, &e.OutputSHA256, &e.OutputSize, &e.Detail,
			&e.Topic, &e.Partition, &e.Offset, &e.Index)
		e.Duration = time.Duration(ms * float64(time.Millisecond))
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the events of task %s: %w", k, err)
	}
	return out, nil
}
