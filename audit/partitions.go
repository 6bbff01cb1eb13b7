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
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// maintenanceLock lets one process at a time look after the partitions.
const maintenanceLock = 0x62617463680002

// maintain makes partitions ahead and drops old ones, now and every so often,
// until ctx ends. Errors are logged: the next round tries again, and meanwhile
// the writer makes the partitions that it needs itself.
// told hears of the days that were dropped.
func maintain(ctx context.Context, pool *pgxpool.Pool, cfg Config, log *slog.Logger, m *metrics.Audit, told func(droppedDay)) {
	tick := time.NewTicker(cfg.Maintenance)
	defer tick.Stop()
	for {
		if err := maintainOnce(ctx, pool, cfg.Retention, log, m, told); err != nil && ctx.Err() == nil {
			log.Warn("looking after the partitions of audit_log; trying again later", "error", describe(err), "again_in", cfg.Maintenance)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func maintainOnce(ctx context.Context, pool *pgxpool.Pool, retention time.Duration, log *slog.Logger, m *metrics.Audit, told func(droppedDay)) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(maintenanceLock)).Scan(&mine); err != nil {
		return fmt.Errorf("asking for the maintenance lock: %w", err)
	}
	if !mine {
		return nil // somebody else is at it
	}
	defer func() {
		// The lock would stay with the pooled session: without an answer it is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", int64(maintenanceLock)); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	today := dayOf(time.Now())
	var errs []error
	for i := range daysAhead + 1 {
		made, err := makePartition(ctx, conn, today.Add(time.Duration(i)*day))
		if made {
			m.PartitionsMade.Inc()
		}
		errs = append(errs, err)
	}
	errs = append(errs, prune(ctx, pool, time.Now().Add(-retention), func(gone droppedDay) {
		m.PartitionsGone.Inc()
		log.Info("dropped audit rows that are older than audit.retention", "day", gone.day, "rows", gone.rows)
		told(gone)
	}))
	errs = append(errs, watchDefault(ctx, pool, log, m), compactRollups(ctx, pool, retention))
	return errors.Join(errs...)
}

// watchDefault raises the alarm when the default partition holds rows: a clock
// is wrong, or a partition could not be made.
func watchDefault(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, m *metrics.Audit) error {
	var rows int64
	var first, last *time.Time
	if err := pool.QueryRow(ctx, "SELECT count(*), min(time), max(time) FROM audit_log_default").Scan(&rows, &first, &last); err != nil {
		return fmt.Errorf("looking at audit_log_default: %w", err)
	}
	m.DefaultRows.Set(float64(rows))
	if rows > 0 {
		log.Error("audit_log_default holds rows: the clock of who wrote them was wrong, or a daily partition could not be made",
			"rows", rows, "first", first.UTC().Format(time.RFC3339), "last", last.UTC().Format(time.RFC3339))
	}
	return nil
}

// droppedDay is a UTC day whose rows retention has taken.
type droppedDay struct {
	day     string // 2006-01-02
	rows    int64
	chained int64 // of these, rows of a chain; what is left of them is in audit_dropped
	runs    int64 // rows of audit_dropped
}

// prunableSQL lists the days that ended before a time and that the log still
// holds rows or a partition of, the first first.
const prunableSQL = `
SELECT to_char(day, 'YYYY-MM-DD') FROM (
	SELECT to_date(substr(c.relname, 11), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$'
	UNION SELECT DISTINCT (time AT TIME ZONE 'UTC')::date FROM audit_log_default WHERE time < $1) AS d (day)
WHERE (day + 1)::timestamp AT TIME ZONE 'UTC' <= $1 ORDER BY day`

// prune drops the days that ended before the given time, partition by partition,
// and such rows of the default partition; told hears of each. When the process
// dies, each day is either gone and noted or still there.
func prune(ctx context.Context, pool *pgxpool.Pool, before time.Time, told func(droppedDay)) error {
	rows, err := pool.Query(ctx, prunableSQL, before)
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	for _, name := range days {
		gone := droppedDay{day: name}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			// Dropping locks the whole table: rather later than behind a long query,
			// with every writer in the queue.
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "SELECT dropped, chained, runs FROM batchyard_drop_audit_partition($1::date)", name).Scan(&gone.rows, &gone.chained, &gone.runs)
		})
		if err != nil {
			return fmt.Errorf("dropping the audit rows of %s: %w", name, err)
		}
		told(gone)
	}
	return nil
}

// partitionResource names a day of the log in the event of its end.
func partitionResource(day string) string { return "audit_log " + day }

// tellDropped returns the function that makes an event of a day that was
// dropped. When the process dies before it is written, audit_dropped says all
// the same what is gone.
func (r *Recorder) tellDropped(ctx context.Context, out *stream.Outbox) func(droppedDay) {
	return func(d droppedDay) {
		e := task.Event{
			Time: time.Now().UTC(), Action: task.PartitionDropped, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: r.actor,
			ResourceType: "partition", ResourceID: partitionResource(d.day),
		}
		e.Detail, _ = json.Marshal(map[string]any{"day": d.day, "rows": d.rows, "chained": d.chained, "runs": d.runs, "retention": r.cfg.Retention.String()}) // text and numbers
		if err := out.Put(ctx, stream.Unit{Events: []task.Event{e}}); err != nil && ctx.Err() == nil {
			r.log.Warn("the event of a dropped day could not be written", "day", d.day, "error", err)
		}
	}
}
