package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/metrics"
)

// daysAhead is how many days beyond today have a partition.
const daysAhead = 3

const day = 24 * time.Hour

func dayOf(t time.Time) time.Time { return t.UTC().Truncate(day) }

// ensureDays makes the partitions of the chunk's days that lack one. What is
// older than the retention or far in the future stays in the default partition:
// a wrong clock must not make thousands of tables.
func (d *db) ensureDays(ctx context.Context, c chunk, retention time.Duration, log *slog.Logger, m *metrics.Audit) error {
	now := time.Now()
	from, to := dayOf(now.Add(-retention)), dayOf(now).Add(daysAhead*day)
	for _, e := range c {
		for i := range e.events {
			at := dayOf(e.events[i].v.Time)
			if d.days[at] || at.Before(from) || at.After(to) || now.Before(d.notYet[at]) {
				continue
			}
			made, err := makePartition(ctx, d.pool, at)
			switch pg, ok := errors.AsType[*pgconn.PgError](err); {
			case err == nil:
				d.days[at] = true
				if made {
					m.PartitionsMade.Inc()
				}
			case ok && (pg.Code == lockNotAvailable || pg.Code == "42501"):
				// The day is made later and takes its rows over; they are not to wait.
				d.notYet[at] = now.Add(time.Minute)
				log.Error("a daily partition could not be made: its rows go to audit_log_default", "day", at.Format(time.DateOnly), "error", describe(err))
			default:
				return err
			}
		}
	}
	return nil
}

// lockNotAvailable is what Postgres says when a lock was not free in time.
const lockNotAvailable = "55P03"

// beginner is a pool or a connection.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// makePartition makes the partition of a day; false when it was there.
func makePartition(ctx context.Context, db beginner, at time.Time) (made bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		// Locks are waited for only shortly: others queue behind.
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '3s'"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT batchyard_make_audit_partition($1::date)", at.Format(time.DateOnly)).Scan(&made)
	})
	if err != nil {
		return false, fmt.Errorf("making the partition of %s: %w", at.Format(time.DateOnly), err)
	}
	return made, nil
}

// maintenanceLock lets one process at a time look after the partitions.
const maintenanceLock = 0x62617463680002

// maintain makes partitions ahead and drops old ones, now and every so often,
// until ctx ends. Errors are logged: the next round tries again, and meanwhile
// the writer makes the partitions that it needs itself.
func maintain(ctx context.Context, pool *pgxpool.Pool, cfg Config, log *slog.Logger, m *metrics.Audit) {
	tick := time.NewTicker(cfg.Maintenance)
	defer tick.Stop()
	for {
		if err := maintainOnce(ctx, pool, cfg.Retention, log, m); err != nil && ctx.Err() == nil {
			log.Warn("looking after the partitions of audit_log; trying again later", "error", describe(err), "again_in", cfg.Maintenance)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func maintainOnce(ctx context.Context, pool *pgxpool.Pool, retention time.Duration, log *slog.Logger, m *metrics.Audit) error {
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
	dropped, err := prune(ctx, pool, time.Now().Add(-retention))
	if len(dropped) > 0 {
		m.PartitionsGone.Add(float64(len(dropped)))
		log.Info("dropped audit rows that are older than audit.retention", "partitions", dropped)
	}
	return errors.Join(append(errs, err)...)
}

const partitionsSQL = `
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{8}$' ORDER BY 1`

// prune drops the partitions of the days that ended before the given time, and
// such rows of the default partition. It returns what was dropped.
func prune(ctx context.Context, pool *pgxpool.Pool, before time.Time) (dropped []string, err error) {
	rows, err := pool.Query(ctx, partitionsSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
	}
	for _, name := range names {
		at, err := time.Parse("audit_log_20060102", name)
		if err != nil || at.Add(day).After(before) {
			continue
		}
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			// Dropping locks the whole table: rather later than behind a long query,
			// with every writer in the queue.
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "DROP TABLE IF EXISTS "+pgx.Identifier{name}.Sanitize())
			return err
		})
		if err != nil {
			return dropped, fmt.Errorf("dropping the partition %s: %w", name, err)
		}
		dropped = append(dropped, name)
	}
	if _, err := pool.Exec(ctx, "DELETE FROM audit_log_default WHERE time < $1", before); err != nil {
		return dropped, fmt.Errorf("deleting old rows of audit_log_default: %w", err)
	}
	return dropped, nil
}
