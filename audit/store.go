package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// ErrNotFound says that there is no such task in Postgres: nobody submitted it,
// or it was submitted a moment ago.
var ErrNotFound = errors.New("there is no such task")

// Store answers questions about tasks, results and events. It may be used by
// any goroutine.
type Store struct {
	pool *pgxpool.Pool
	hub  *hub
}

// NewStore returns a store. It connects when it is asked.
func NewStore(pool *pgxpool.Pool, cfg Config, log *slog.Logger, m *metrics.Metrics) *Store {
	s := &Store{pool: pool}
	s.hub = newHub(s, cfg.withDefaults(), log, m)
	return s
}

// Close ends every wait and the connection that listens.
func (s *Store) Close() { s.hub.close() }

// Ping asks Postgres for a sign of life.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("asking Postgres for a sign of life: %w", err)
	}
	return nil
}

// PruneDays drops the audit rows of the days that ended longer than keep ago and
// returns these days.
func (s *Store) PruneDays(ctx context.Context, keep time.Duration) (days []string, err error) {
	err = prune(ctx, s.pool, time.Now().Add(-keep), func(d droppedDay) { days = append(days, d.day) })
	return days, err
}

// TaskRow is what Postgres knows of a task.
type TaskRow struct {
	Tenant       string
	ID           string
	State        task.State
	Version      int64 // counts the changes
	Attempt      int   // 0: none yet
	Device       string
	Model        string
	Endpoint     string
	Priority     task.Priority
	Job          string
	CustomID     string
	TraceID      string
	SubmittedAt  time.Time
	AssignedAt   time.Time
	StartedAt    time.Time
	FinishedAt   time.Time
	Deadline     time.Time
	UpdatedAt    time.Time
	ErrorClass   task.ErrorClass
	ErrorMessage string
	CallbackURL  string

	// Result is the answer of a task that has ended; nil before and in lists.
	Result *task.Result
}

// Key is the identity of the row's task.
func (r *TaskRow) Key() task.Key { return task.Key{Tenant: r.Tenant, ID: r.ID} }

// The columns of tasks, and how they are read.
const taskColumns = `t.tenant, t.task_id, t.state, t.version, t.attempt, coalesce(t.device_id, ''), coalesce(t.model, ''),
	coalesce(t.endpoint, ''), coalesce(t.priority, ''), coalesce(t.job_id, ''), coalesce(t.custom_id, ''), coalesce(t.trace_id, ''),
	t.submitted_at, t.assigned_at, t.started_at, t.finished_at, t.deadline, t.updated_at,
	coalesce(t.error_class, ''), coalesce(t.error_message, ''), coalesce(t.callback_url, '')`

// when reads a time that may be NULL.
type when struct{ t *time.Time }

// ScanTimestamptz is called by pgx.
func (w when) ScanTimestamptz(v pgxTime) error {
	*w.t = time.Time{}
	if v.Valid {
		*w.t = v.Time.UTC()
	}
	return nil
}

func (r *TaskRow) targets() []any {
	return []any{&r.Tenant, &r.ID, &r.State, &r.Version, &r.Attempt, &r.Device, &r.Model, &r.Endpoint, &r.Priority, &r.Job,
		&r.CustomID, &r.TraceID, when{&r.SubmittedAt}, when{&r.AssignedAt}, when{&r.StartedAt}, when{&r.FinishedAt},
		when{&r.Deadline}, when{&r.UpdatedAt}, &r.ErrorClass, &r.ErrorMessage, &r.CallbackURL}
}

// The columns of results, and how they are read. All may be NULL, because the
// row may not be there.
const resultColumns = `r.tenant, coalesce(r.task_id, ''), coalesce(r.state, ''), coalesce(r.status, 0), r.output::text, coalesce(r.error_class, ''),
	coalesce(r.error_message, ''), r.attempts::text, coalesce(r.input_tokens, 0), coalesce(r.output_tokens, 0), coalesce(r.device_id, ''),
	coalesce(r.model, ''), coalesce(r.requested_model, ''), coalesce(r.endpoint, ''), coalesce(r.priority, ''), coalesce(r.job_id, ''),
	coalesce(r.custom_id, ''), r.labels::text, coalesce(r.callback_url, ''), coalesce(r.trace_id, ''),
	r.submitted_at, r.assigned_at, r.started_at, r.finished_at`

type resultRow struct {
	tenant           *string
	res              task.Result
	output           []byte
	class, message   string
	attempts, labels []byte
	callback         string
}

func (r *resultRow) targets() []any {
	return []any{&r.tenant, &r.res.TaskID, &r.res.State, &r.res.Status, &r.output, &r.class, &r.message, &r.attempts,
		&r.res.Usage.InputTokens, &r.res.Usage.OutputTokens, &r.res.Device, &r.res.Model, &r.res.Requested, &r.res.Endpoint,
		&r.res.Priority, &r.res.Job, &r.res.CustomID, &r.labels, &r.callback, &r.res.TraceID,
		when{&r.res.SubmittedAt}, when{&r.res.AssignedAt}, when{&r.res.StartedAt}, when{&r.res.FinishedAt}}
}

// result is what was read; nil when there was no row.
func (r *resultRow) result() (*task.Result, error) {
	if r.tenant == nil {
		return nil, nil
	}
	r.res.Tenant = *r.tenant
	r.res.Output = r.output
	if r.class != "" || r.message != "" {
		r.res.Error = &task.Error{Class: task.ErrorClass(r.class), Message: r.message}
	}
	if r.callback != "" {
		r.res.Callback = &task.Callback{URL: r.callback}
	}
	if r.attempts != nil {
		if err := json.Unmarshal(r.attempts, &r.res.Attempts); err != nil {
			return nil, fmt.Errorf("reading the attempts of task %s: %w", r.res.Key(), err)
		}
	}
	if r.labels != nil {
		if err := json.Unmarshal(r.labels, &r.res.Labels); err != nil {
			return nil, fmt.Errorf("reading the labels of task %s: %w", r.res.Key(), err)
		}
	}
	return &r.res, nil
}

// Task returns what is known of a task, with its result when it has ended;
// ErrNotFound when nothing is.
func (s *Store) Task(ctx context.Context, k task.Key) (*TaskRow, error) {
	row, res := &TaskRow{}, &resultRow{}
	err := s.pool.QueryRow(ctx, `SELECT `+taskColumns+`, `+resultColumns+`
		FROM tasks t LEFT JOIN results r ON r.tenant = t.tenant AND r.task_id = t.task_id
		WHERE t.tenant = $1 AND t.task_id = $2`, k.Tenant, k.ID).Scan(append(row.targets(), res.targets()...)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err == nil {
		row.Result, err = res.result()
	}
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", k, err)
	}
	return row, nil
}

// ended reads those of the tasks that have ended, with their results.
func (s *Store) ended(ctx context.Context, keys []task.Key, fn func(*TaskRow)) error {
	tenants, ids := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		tenants[i], ids[i] = k.Tenant, k.ID
	}
	rows, err := s.pool.Query(ctx, `SELECT `+taskColumns+`, `+resultColumns+`
		FROM unnest($1::text[], $2::text[]) AS u (tenant, task_id)
		JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id
		JOIN results r ON r.tenant = u.tenant AND r.task_id = u.task_id`, tenants, ids)
	if err != nil {
		return fmt.Errorf("reading %d tasks: %w", len(keys), err)
	}
	defer rows.Close()
	for rows.Next() {
		row, res := &TaskRow{}, &resultRow{}
		err := rows.Scan(append(row.targets(), res.targets()...)...)
		if err == nil {
			row.Result, err = res.result()
		}
		if err != nil {
			return fmt.Errorf("reading %d tasks: %w", len(keys), err)
		}
		fn(row)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading %d tasks: %w", len(keys), err)
	}
	return nil
}

// WaitTask returns a task when it has ended: at once, or as soon as it does. A
// task that nobody knows yet is waited for, too. When ctx ends first its error
// is returned.
func (s *Store) WaitTask(ctx context.Context, k task.Key) (*TaskRow, error) {
	return s.hub.wait(ctx, k)
}
