package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// maintenanceLock lets one process at a time maintain the partitions.
const maintenanceLock = 0x62617463680002

// maintenance creates partitions ahead of time and drops old ones.
type maintenance struct {
	pool    *pgxpool.Pool
	cfg     Config
	logger  *slog.Logger
	metrics *metrics.Audit
	dropped func(context.Context, droppedDay) // is called for each day that was dropped
}

// run maintains the partitions now and at intervals, until ctx ends. After an error the next round
// tries again, and meanwhile writers create the partitions they need.
func (m *maintenance) run(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Maintenance)
	defer tick.Stop()
	for {
		if err := m.once(ctx); err != nil && ctx.Err() == nil {
			m.logger.Warn("maintaining the partitions of audit_log failed; trying again later", "error", pg.Describe(err), "again_in", m.cfg.Maintenance)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *maintenance) once(ctx context.Context) error {
	conn, err := m.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(maintenanceLock)).Scan(&mine); err != nil {
		return fmt.Errorf("taking the maintenance lock: %w", err)
	}
	if !mine {
		return nil // another process is doing it
	}
	defer func() {
		// The lock would stay with the pooled session. If it cannot be released, the session is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", int64(maintenanceLock)); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	today := audit.DayOf(time.Now())
	var errs []error
	for i := range daysAhead + 1 {
		created, err := createPartition(ctx, conn, today.Add(time.Duration(i)*audit.Day))
		if created {
			m.metrics.PartitionsMade.Inc()
		}
		errs = append(errs, err)
	}
	errs = append(errs, dropDays(ctx, m.pool, time.Now().Add(-m.cfg.Retention), func(d droppedDay) {
		m.metrics.PartitionsGone.Inc()
		m.logger.Info("dropped audit rows that are older than audit.retention", "day", d.day, "rows", d.rows)
		m.dropped(ctx, d)
	}))
	errs = append(errs, m.watchDefault(ctx), rollup.Compact(ctx, m.pool, m.cfg.Retention))
	return errors.Join(errs...)
}

// watchDefault raises an alarm if the default partition has rows: a clock is wrong, or a partition
// could not be created.
func (m *maintenance) watchDefault(ctx context.Context) error {
	var rows int64
	var first, last *time.Time
	if err := m.pool.QueryRow(ctx, "SELECT count(*), min(time), max(time) FROM audit_log_default").Scan(&rows, &first, &last); err != nil {
		return fmt.Errorf("counting the rows of audit_log_default: %w", err)
	}
	m.metrics.DefaultRows.Set(float64(rows))
	if rows > 0 {
		m.logger.Error("audit_log_default has rows: the clock of their writer was wrong, or a daily partition could not be created",
			"rows", rows, "first", first.UTC().Format(time.RFC3339), "last", last.UTC().Format(time.RFC3339))
	}
	return nil
}

// droppedDay is a UTC day whose rows were dropped because of the retention.
type droppedDay struct {
	day     string // 2006-01-02
	rows    int64
	chained int64 // those of them that belonged to a chain; audit_dropped has what is left of them
	runs    int64 // rows that were added to audit_dropped
}

// droppableSQL lists the days that ended before a time and that the log has rows or a partition
// of, the oldest first.
const droppableSQL = `
SELECT to_char(day, 'YYYY-MM-DD') FROM (
	SELECT to_date(substr(c.relname, 11), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$'
	UNION SELECT DISTINCT (time AT TIME ZONE 'UTC')::date FROM audit_log_default WHERE time < $1) AS d (day)
WHERE (day + 1)::timestamp AT TIME ZONE 'UTC' <= $1 ORDER BY day`

// dropDays drops the partitions of the days that ended before a time, and such rows of the default
// partition, and calls dropped for each day. If the process dies, each day is either dropped and
// noted in audit_dropped, or still there.
func dropDays(ctx context.Context, pool *pgxpool.Pool, before time.Time, dropped func(droppedDay)) error {
	rows, err := pool.Query(ctx, droppableSQL, before)
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	for _, name := range days {
		d := droppedDay{day: name}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			// Dropping locks the whole table. Waiting for a long query would make every writer queue
			// behind the lock; better to try again later.
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "SELECT dropped, chained, runs FROM batchyard_drop_audit_partition($1::date)", name).Scan(&d.rows, &d.chained, &d.runs)
		})
		if err != nil {
			return fmt.Errorf("dropping the audit rows of %s: %w", name, err)
		}
		dropped(d)
	}
	return nil
}

// reportDropped writes the event of a day that was dropped. If the process dies before that,
// audit_dropped still says what is gone.
func (r *Recorder) reportDropped(ctx context.Context, out *stream.Outbox, d droppedDay) {
	e := task.Event{
		Time: time.Now().UTC(), Action: task.PartitionDropped, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: r.Instance,
		ResourceType: "partition", ResourceID: audit.DroppedDayResource(d.day),
	}
	e.Detail, _ = json.Marshal(map[string]any{"day": d.day, "rows": d.rows, "chained": d.chained, "runs": d.runs, "retention": r.cfg.Retention.String()}) // text and numbers: it cannot fail
	if err := out.Put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil && ctx.Err() == nil {
		r.Logger.Warn("the event of a dropped day could not be written", "day", d.day, "error", err)
	}
}
