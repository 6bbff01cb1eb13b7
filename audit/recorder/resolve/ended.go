package resolve

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// A hole may swallow everything about a task but the event of its end: its acceptance, its result and, by
// retention, its record. Such a task has no row in Postgres, so no other pass sees that it is lost, and
// only the log knows its name. The log is large. So it is searched last, once no other task is lost or
// underway, and one day at a time.

// noHorizon is how far back the log is searched if events are never deleted.
const noHorizon = 30 * 24 * time.Hour

// readEnded returns tasks that ended, as the log says, and that Postgres does not know otherwise. It starts
// as long before the first of the holes as Kafka keeps events: an older event was lost in no hole.
func (r *Resolver) readEnded(ctx context.Context) (map[task.Run]*task.Task, error) {
	keeps, err := r.Log.Settings(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka for the retention of topic %s: %w", stream.Events, err)
	}
	back := keeps[stream.Events].Retention
	if back <= 0 {
		back = noHorizon
	}
	var from, now time.Time
	err = r.Pool.QueryRow(ctx, "SELECT min(noticed_at), now() FROM stream_breaks WHERE resolved_at IS NULL").Scan(&from, &now)
	if err != nil {
		return nil, fmt.Errorf("reading the holes of the log: %w", err)
	}
	ended := map[task.Run]*task.Task{}
	const day = 24 * time.Hour
	for at := from.Add(-back); at.Before(now) && len(ended) < r.max; at = at.Add(day) {
		rows, err := r.Pool.Query(ctx, "SELECT tenant, task_id, model, job_id, trace_id FROM batchyard_tasks_without_state($1, $2, $3)", at, at.Add(day), r.max)
		if err == nil {
			t := task.Task{}
			_, err = pgx.ForEachRow(rows, []any{&t.Tenant, &t.ID, &t.Model, &t.JobID, &t.TraceID}, func() error {
				lost := t
				lost.Progress = &task.Progress{}
				ended[lost.Run()] = &lost
				return nil
			})
		}
		if err != nil {
			return nil, fmt.Errorf("looking in the log for tasks that have no state: %w", err)
		}
	}
	return ended, nil
}
