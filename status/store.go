// Package status answers questions about tasks, results and jobs from what the recorder has written
// to Postgres: the state of one task, lists, timelines, the results of a job. It also lets many
// requests wait for tasks to finish, with one connection for all of them.
package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// ErrNotFound says that Postgres has no such task: it does not exist, or was submitted a moment ago.
var ErrNotFound = errors.New("there is no such task")

// Deps is what a store works with.
type Deps struct {
	Pool    *pgxpool.Pool
	Logger  *slog.Logger
	Metrics *metrics.Metrics
}

// Store answers questions about tasks. It may be used by any goroutine. Close it.
type Store struct {
	pool *pgxpool.Pool
	hub  *hub
}

// New returns a store. It connects when it is first asked something.
func New(cfg Config, deps Deps) *Store {
	s := &Store{pool: deps.Pool}
	s.hub = newHub(s, cfg.withDefaults(), deps.Logger, &deps.Metrics.Audit)
	return s
}

// Close ends every wait and the listening connection.
func (s *Store) Close() { s.hub.close() }

// Ping reports whether Postgres answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("pinging Postgres: %w", err)
	}
	return nil
}

// Task returns what is known about the latest run of a task, with its result if it has finished, or
// [ErrNotFound].
func (s *Store) Task(ctx context.Context, k task.Key) (*TaskRow, error) {
	row, res := &TaskRow{}, &resultRow{}
	err := s.pool.QueryRow(ctx, `SELECT `+taskColumns+`, `+resultColumns+`
		FROM tasks t LEFT JOIN results r ON r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation
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

// finished calls fn with those of the tasks that have finished, with their results.
func (s *Store) finished(ctx context.Context, keys []task.Key, fn func(*TaskRow)) error {
	tenants, ids := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		tenants[i], ids[i] = k.Tenant, k.ID
	}
	rows, err := s.pool.Query(ctx, `SELECT `+taskColumns+`, `+resultColumns+`
		FROM unnest($1::text[], $2::text[]) AS u (tenant, task_id)
		JOIN tasks t ON t.tenant = u.tenant AND t.task_id = u.task_id
		JOIN results r ON r.tenant = t.tenant AND r.task_id = t.task_id AND r.generation = t.generation`, tenants, ids)
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

// WaitTask returns a task once the run, or a later one, has finished; at once if it has already. It waits
// for unknown tasks, too. If ctx ends first, it returns the error of ctx.
func (s *Store) WaitTask(ctx context.Context, r task.Run) (*TaskRow, error) {
	return s.hub.wait(ctx, r)
}
