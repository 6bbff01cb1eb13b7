// Package partitions creates the daily partitions of audit_log ahead of time and drops old ones.
package partitions

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
)

// DaysAhead is how many days beyond today have a partition.
const DaysAhead = 3

// Maintenance creates partitions ahead of time and drops old ones.
type Maintenance struct {
	Pool      *pgxpool.Pool
	Interval  time.Duration
	Retention time.Duration
	Logger    *slog.Logger
	Metrics   *metrics.Audit
	Dropped   func(context.Context, DroppedDay) // is called for each day that was dropped
	Key       ed25519.PrivateKey                // signs what is dropped; nil: it is not signed
	Instance  string                            // who signs
}

// Run maintains the partitions now and at intervals, until ctx ends. After an error the next round
// tries again, and meanwhile writers create the partitions they need.
func (m *Maintenance) Run(ctx context.Context) {
	tick := time.NewTicker(m.Interval)
	defer tick.Stop()
	for {
		if err := m.Once(ctx); err != nil && ctx.Err() == nil {
			m.Logger.Warn("maintaining the partitions of audit_log failed; trying again later", "error", pg.Describe(err), "again_in", m.Interval)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Once maintains the partitions, if no other process does.
func (m *Maintenance) Once(ctx context.Context) error {
	conn, err := m.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", pg.MaintenanceLock).Scan(&mine); err != nil {
		return fmt.Errorf("taking the maintenance lock: %w", err)
	}
	if !mine {
		return nil // another process is doing it
	}
	defer func() {
		// The lock would stay with the pooled session. If it cannot be released, the session is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", pg.MaintenanceLock); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	today := audit.DayOf(time.Now())
	var errs []error
	for i := range DaysAhead + 1 {
		created, err := Create(ctx, conn, today.Add(time.Duration(i)*audit.Day))
		if created {
			m.Metrics.PartitionsMade.Inc()
		}
		errs = append(errs, err)
	}
	errs = append(errs, DropDays(ctx, m.Pool, time.Now().Add(-m.Retention), m.statement, func(d DroppedDay) {
		m.Metrics.PartitionsGone.Inc()
		m.Logger.Info("dropped audit rows that are older than audit.retention", "day", d.Day, "rows", d.Rows)
		m.Dropped(ctx, d)
	}))
	errs = append(errs, m.watchDefault(ctx), rollup.Compact(ctx, m.Pool, m.Retention))
	return errors.Join(errs...)
}

// statement signs what was dropped, in the transaction that drops it.
func (m *Maintenance) statement(ctx context.Context, tx pgx.Tx, day string) error {
	if m.Key == nil {
		return nil
	}
	return SignDropped(ctx, tx, m.Key, m.Instance, day, m.Retention)
}

// SignDropped adds the statement about a day that was dropped in the same transaction.
func SignDropped(ctx context.Context, tx pgx.Tx, key ed25519.PrivateKey, instance, day string, retention time.Duration) error {
	runs, err := statements.Runs(ctx, tx, "day = $1::date AND dropped_at = now()", day)
	if err != nil || len(runs) == 0 { // its rows were in no chain
		return err
	}
	dropped := statements.Describe(runs)
	dropped.Day, dropped.Retention = day, retention.String()
	return statements.Append(ctx, tx, key, &audit.Statement{Kind: audit.RowsDropped, ActorID: instance, Dropped: dropped})
}

// watchDefault raises an alarm if the default partition has rows: a clock is wrong, or a partition
// could not be created.
func (m *Maintenance) watchDefault(ctx context.Context) error {
	var rows int64
	var first, last *time.Time
	if err := m.Pool.QueryRow(ctx, "SELECT count(*), min(time), max(time) FROM audit_log_default").Scan(&rows, &first, &last); err != nil {
		return fmt.Errorf("counting the rows of audit_log_default: %w", err)
	}
	m.Metrics.DefaultRows.Set(float64(rows))
	if rows > 0 {
		m.Logger.Error("audit_log_default has rows: the clock of their writer was wrong, or a daily partition could not be created",
			"rows", rows, "first", first.UTC().Format(time.RFC3339), "last", last.UTC().Format(time.RFC3339))
	}
	return nil
}

// DroppedDay is a UTC day whose rows were dropped because of the retention.
type DroppedDay struct {
	Day     string // 2006-01-02
	Rows    int64
	Chained int64 // those of them that belonged to a chain; audit_dropped has what is left of them
	Runs    int64 // rows that were added to audit_dropped
}

// droppableSQL lists the days that ended before a time and that the log has rows or a partition
// of, the oldest first.
const droppableSQL = `
SELECT to_char(day, 'YYYY-MM-DD') FROM (
	SELECT to_date(substr(c.relname, 11), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$'
	UNION SELECT DISTINCT (time AT TIME ZONE 'UTC')::date FROM audit_log_default WHERE time < $1) AS d (day)
WHERE (day + 1)::timestamp AT TIME ZONE 'UTC' <= $1 ORDER BY day`

// DropDays drops the partitions of the days that ended before a time, and such rows of the default
// partition, and calls dropped for each day. If the process dies, each day is either dropped and
// noted in audit_dropped, or still there. state is called in the transaction that drops a day.
func DropDays(ctx context.Context, pool *pgxpool.Pool, before time.Time, state func(context.Context, pgx.Tx, string) error, dropped func(DroppedDay)) error {
	rows, err := pool.Query(ctx, droppableSQL, before)
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("listing the days of audit_log: %w", err)
	}
	for _, name := range days {
		d := DroppedDay{Day: name}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			// Dropping locks the whole table. Waiting for a long query would make every writer queue
			// behind the lock; better to try again later.
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, "SELECT dropped, chained, runs FROM batchyard_drop_audit_partition($1::date)", name).Scan(&d.Rows, &d.Chained, &d.Runs); err != nil {
				return err
			}
			return state(ctx, tx, name)
		})
		if err != nil {
			return fmt.Errorf("dropping the audit rows of %s: %w", name, err)
		}
		dropped(d)
	}
	return nil
}

// beginner is a pool or a connection.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Create creates the partition of a day; created is false if it existed.
func Create(ctx context.Context, conn beginner, at time.Time) (created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Not long, because others queue behind it.
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '3s'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT batchyard_make_audit_partition($1::date)", at.Format(time.DateOnly)).Scan(&created)
	})
	if err != nil {
		return false, fmt.Errorf("creating the partition of %s: %w", at.Format(time.DateOnly), err)
	}
	return created, nil
}
