package status

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

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Bounds of a page.
const (
	DefaultLimit = 50
	MaxLimit     = 1000
)

// Filter selects tasks. The tenant is required.
type Filter struct {
	Tenant string
	State  task.State // empty: any
	Job    string     // empty: any
	Limit  int        // rows per page, at most MaxLimit; 0: DefaultLimit
	Cursor string     // next of the previous page; empty: the first page
}

// ErrBadCursor says that a cursor was not returned by Tasks.
var ErrBadCursor = errors.New("invalid cursor: use the `next` value from the previous page, or leave it out for the first page")

// cursor is the last row of a page; the next page begins after it.
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
	if !pg.Fits(c.id, task.MaxIDLength) || !pg.InRange(c.at) {
		return c, ErrBadCursor
	}
	return c, nil
}

// Tasks lists tasks without their results, the latest submitted first; those of a job by id, the
// highest first. next is the cursor of the next page; empty if there is none.
func (s *Store) Tasks(ctx context.Context, f Filter) (rows []TaskRow, next string, err error) {
	if f.Tenant == "" {
		return nil, "", &task.FieldError{Field: "tenant", Problem: "missing", Remedy: "name the tenant whose tasks to list"}
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
		// The newest of each state, and of these the newest: the index begins with the state.
		args = append(args, task.States)
		from = fmt.Sprintf("unnest($%d::text[]) AS s (state) CROSS JOIN LATERAL (SELECT * FROM tasks t WHERE t.state = s.state AND %%s %%s) t", len(args))
	}
	order := "t.submitted_at DESC, t.task_id DESC"
	if f.Job != "" {
		and("t.job_id = ?", f.Job)
		order = "t.task_id DESC" // the order of the index
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
	args = append(args, f.Limit+1) // one more, to know whether there is a next page
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

// Bounds of one query for results. No connection is held between queries, however slow the caller.
const (
	jobPage      = 500
	jobPageBytes = 8 << 20
)

// JobResults calls fn with each result of a job, in the order of the task ids, until fn returns an
// error, which it returns.
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

// jobPage reads one page of results.
func (s *Store) jobPage(ctx context.Context, tenant, job, after string) (page []*task.Result, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // drops the rest of a page that is full by bytes
	// State and result of a task are written in one transaction. Each result is looked up by its key,
	// to which OFFSET 0 forces the planner: a merge join would begin with the tenant's first result,
	// for every page.
	rows, err := s.pool.Query(ctx, `SELECT `+resultColumns+` FROM tasks t
		CROSS JOIN LATERAL (SELECT * FROM results r WHERE r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation OFFSET 0) r
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
