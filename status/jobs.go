package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/jobview"
	"github.com/batchyard/batchyard/task"
)

// ErrNoJob says that Postgres has no such job: it does not exist, or was submitted a moment ago.
var ErrNoJob = errors.New("there is no such job")

// Job returns how far a job is, or [ErrNoJob].
func (s *Store) Job(ctx context.Context, tenant, job string) (*task.Job, error) {
	j, err := jobview.Scan(s.pool.QueryRow(ctx, `SELECT `+jobview.Columns+` FROM job_progress WHERE tenant = $1 AND job_id = $2`, tenant, job))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoJob
	}
	if err != nil {
		return nil, fmt.Errorf("reading job %s: %w", job, err)
	}
	return j, nil
}

// JobFilter selects jobs. The tenant is required.
type JobFilter struct {
	Tenant string
	State  task.JobState // empty: any
	Prefix string        // of the job's id
	Since  time.Time     // submitted then or later; zero: any time
	Until  time.Time     // submitted before; zero: any time
	Limit  int           // rows per page, at most MaxLimit; 0: DefaultLimit
	Cursor string        // next of the previous page; empty: the first page
}

// Jobs lists jobs, the latest submitted first. next is the cursor of the next page; empty if there is
// none.
func (s *Store) Jobs(ctx context.Context, f JobFilter) (jobs []task.Job, next string, err error) {
	if f.Tenant == "" {
		return nil, "", &task.FieldError{Field: "tenant", Problem: "missing", Remedy: "name the tenant whose jobs to list"}
	}
	if f.Limit < 0 || f.Limit > MaxLimit {
		return nil, "", &task.FieldError{Field: "limit", Problem: fmt.Sprintf("%d is out of range", f.Limit), Remedy: fmt.Sprintf("use 1 to %d", MaxLimit)}
	}
	f.Limit = cmp.Or(f.Limit, DefaultLimit)
	where, args := []string{"tenant = $1"}, []any{f.Tenant}
	and := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		where = append(where, condition)
	}
	if f.Prefix != "" {
		and("starts_with(job_id, ?)", f.Prefix)
	}
	if !f.Since.IsZero() {
		and("submitted_at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		and("submitted_at < ?", f.Until)
	}
	if f.State == task.JobRunning {
		and("finished_at IS NULL")
	}
	if f.Cursor != "" {
		c, err := parseCursor(f.Cursor)
		if err != nil {
			return nil, "", err
		}
		and("(submitted_at, job_id) < (?::timestamptz, ?)", c.at, c.id)
	}
	args = append(args, string(f.State), f.Limit+1) // one more, to know whether there is a next page
	// Jobs are counted one by one in the order of the index, until the page is full: OFFSET 0 keeps
	// the planner from counting them all.
	rows, err := s.pool.Query(ctx, fmt.Sprintf(`SELECT p.* FROM
		(SELECT tenant AS of_tenant, job_id AS of_job, submitted_at AS at FROM jobs WHERE %s ORDER BY submitted_at DESC, job_id DESC OFFSET 0) k
		CROSS JOIN LATERAL (SELECT `+jobview.Columns+` FROM job_progress WHERE tenant = k.of_tenant AND job_id = k.of_job OFFSET 0) p
		WHERE $%d IN ('', p.state) ORDER BY k.at DESC, k.of_job DESC LIMIT $%d`, strings.Join(where, " AND "), len(args)-1, len(args)), args...)
	if err == nil {
		jobs, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (task.Job, error) {
			j, err := jobview.Scan(r)
			if err != nil {
				return task.Job{}, err
			}
			return *j, nil
		})
	}
	if err != nil {
		return nil, "", fmt.Errorf("listing jobs of %s: %w", f.Tenant, err)
	}
	if len(jobs) > f.Limit {
		jobs = jobs[:f.Limit]
		last := jobs[f.Limit-1]
		next = cursor{*last.At, last.JobID}.String()
	}
	return jobs, next, nil
}

// JobTasks returns tasks of a job that are in one of the states, in the order of their ids, after the
// given id.
func (s *Store) JobTasks(ctx context.Context, job task.Key, in []task.State, after string, limit int) ([]TaskRow, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+taskColumns+` FROM tasks t
		WHERE t.tenant = $1 AND t.job_id = $2 AND t.task_id > $3 AND t.state = ANY($4) ORDER BY t.task_id LIMIT $5`, job.Tenant, job.ID, after, in, limit)
	if err != nil {
		return nil, fmt.Errorf("listing the tasks of job %s: %w", job.ID, err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (row TaskRow, err error) { return row, r.Scan(row.targets()...) })
	if err != nil {
		return nil, fmt.Errorf("listing the tasks of job %s: %w", job.ID, err)
	}
	return out, nil
}

// Group is unfinished tasks of a job that are in the same state for the same model and device.
type Group struct {
	TaskID string // of one of them
	Tasks  int64
}

// JobGroups returns the largest groups of a job's unfinished tasks, at most limit.
func (s *Store) JobGroups(ctx context.Context, job task.Key, limit int) ([]Group, error) {
	rows, err := s.pool.Query(ctx, `SELECT min(task_id), count(*) FROM tasks
		WHERE tenant = $1 AND job_id = $2 AND state IN ('PENDING', 'ASSIGNED', 'RUNNING') GROUP BY model, state, device_id ORDER BY 2 DESC, 1 LIMIT $3`, job.Tenant, job.ID, limit)
	if err != nil {
		return nil, fmt.Errorf("grouping the tasks of job %s: %w", job.ID, err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (g Group, err error) { return g, r.Scan(&g.TaskID, &g.Tasks) })
	if err != nil {
		return nil, fmt.Errorf("grouping the tasks of job %s: %w", job.ID, err)
	}
	return out, nil
}
