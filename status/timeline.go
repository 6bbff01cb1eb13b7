package status

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// EventRow is one row of the audit log.
type EventRow struct {
	task.Event
	IngestedAt time.Time
	Topic      string // of the record it came from
	Partition  int
	Offset     int64
	Index      int
}

// MaxTimeline bounds the rows that Events returns.
const MaxTimeline = 10_000

// Events returns the timeline of a task: its audit rows, in the order of time.
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
		err = r.Scan(pg.NullTime(&e.Time), pg.NullTime(&e.IngestedAt), &e.Tenant, &e.ActorType, &e.ActorID, &e.SourceAddr, &e.UserAgent, &e.Action,
			&e.ResourceType, &e.ResourceID, &e.Outcome, &e.ErrorClass, &e.TaskID, &e.JobID, &e.BatchID, &e.DeviceID, &e.Attempt, &e.TraceID,
			&ms, &e.Model, &e.InputTokens, &e.OutputTokens, &e.InputSHA256, &e.InputSize, &e.OutputSHA256, &e.OutputSize, &e.Detail,
			&e.Topic, &e.Partition, &e.Offset, &e.Index)
		e.Duration = time.Duration(ms * float64(time.Millisecond))
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the events of task %s: %w", k, err)
	}
	return out, nil
}

// Position is where a record is in Kafka.
type Position struct {
	Topic     string
	Partition int
	Offset    int64
}

// maxRecords bounds the positions that Records returns.
const maxRecords = 16

// Records returns where routers have read the records of a task, the latest first. Kafka may have deleted
// them meanwhile.
func (s *Store) Records(ctx context.Context, k task.Key) ([]Position, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT m[1], m[2]::integer, m[3]::bigint
		FROM task_timeline CROSS JOIN LATERAL regexp_match(source_addr, '^kafka:(.+)/([0-9]{1,9})@([0-9]{1,18})$') AS m
		WHERE tenant = $1 AND task_id = $2 AND action = ANY($3) AND m IS NOT NULL ORDER BY time DESC LIMIT $4`,
		k.Tenant, k.ID, []string{string(task.TaskAccepted), string(task.TaskQueued)}, maxRecords)
	if err != nil {
		return nil, fmt.Errorf("reading where the records of task %s are: %w", k, err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Position])
	if err != nil {
		return nil, fmt.Errorf("reading where the records of task %s are: %w", k, err)
	}
	return out, nil
}
