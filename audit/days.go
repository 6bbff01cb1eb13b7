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

// auditLog is the table that takes the rows of every day: Postgres looks for the
// partition of each.
const auditLog = "audit_log"

// days is what a writer knows of the partitions of audit_log, and gathers the
// rows of a chunk by the tables that take them.
//
// Most rows are of a day whose partition is known, and are copied straight into it:
// on the way through audit_log Postgres looks for the partition of every row, and
// builds and takes apart each a second time, a twentieth of all that it does.
// shortcut.go tells what makes that safe.
type days struct {
	known  map[time.Time]placing   // where the rows of a day go that has a partition
	notYet map[time.Time]time.Time // days whose partition could not be made: when to try again
	tables map[string]*copyBuffer  // rows of the present chunk; as many as it has days
	doubt  string                  // a partition that has not taken the chunk's rows, whosever fault that is

	last struct { // most events are of the same day
		day  time.Time
		rows *copyBuffer
	}
}

// placing is the table that takes the rows of a day.
type placing struct {
	table string
	until time.Time // then it is to be asked for again; zero: never
}

func newDays() days {
	return days{known: map[time.Time]placing{}, notYet: map[time.Time]time.Time{}, tables: map[string]*copyBuffer{}}
}

// has reports whether it is known where the rows of a time go.
func (d *days) has(t, now time.Time) bool {
	p, ok := d.known[dayOf(t)]
	return ok && (p.until.IsZero() || now.Before(p.until))
}

// close sends the rows that went to a table through audit_log from now on: the
// partition was dropped, or somebody has detached or changed it. It is not made anew.
func (d *days) close(table string) {
	for at, p := range d.known {
		if p.table == table {
			d.known[at] = placing{table: auditLog}
		}
	}
}

// settle says how it went the sure way with the rows that a partition has not taken:
// if they were taken, the fault is the partition's.
func (d *days) settle(taken bool) {
	if taken && d.doubt != "" {
		d.close(d.doubt)
	}
	d.doubt = ""
}

// begin empties the tables for the next chunk, and lets go of those that the last
// one had no rows for.
func (d *days) begin() {
	d.last.rows = nil
	for name, rows := range d.tables {
		if rows.rows == 0 {
			delete(d.tables, name)
			continue
		}
		rows.resetCopy()
	}
}

// of returns the rows that a row of that time joins: those of its day's partition,
// or, if it may not be quick, those of audit_log. placed is false when the day has none.
func (d *days) of(t time.Time, quick bool) (rows *copyBuffer, placed bool) {
	if since := t.Sub(d.last.day); d.last.rows != nil && since >= 0 && since < day {
		return d.last.rows, true
	}
	p, placed := d.known[dayOf(t)]
	table := p.table
	if !placed || !quick {
		table = auditLog
	}
	if rows = d.tables[table]; rows == nil {
		rows = &copyBuffer{}
		rows.b = make([]byte, 0, 1<<10) // a chunk may have a few rows of each of many days
		rows.resetCopy()
		d.tables[table] = rows
	}
	if placed {
		d.last.day, d.last.rows = dayOf(t), rows
	}
	return rows, placed
}

// ensureDays makes the partitions of the chunk's days that lack one. What is
// older than the retention or far in the future stays in the default partition:
// a wrong clock must not make thousands of tables.
func (d *db) ensureDays(ctx context.Context, c chunk, retention time.Duration, log *slog.Logger, m *metrics.Audit) error {
	now := time.Now()
	from, to := dayOf(now.Add(-retention)), dayOf(now).Add(daysAhead*day)
	var seen time.Time // a day that has one
	for _, e := range c {
		for i := range e.events {
			t := e.events[i].v.Time
			if since := t.Sub(seen); since >= 0 && since < day && !seen.IsZero() {
				continue
			}
			at := dayOf(t)
			if d.days.has(at, now) {
				seen = at
				continue
			}
			if at.Before(from) || at.After(to) {
				d.alarm(at, now, log)
				continue
			}
			if now.Before(d.days.notYet[at]) {
				continue
			}
			where, made, err := openDay(ctx, d.pool, at, now)
			if made {
				m.PartitionsMade.Inc()
			}
			switch pg, ok := errors.AsType[*pgconn.PgError](err); {
			case err == nil:
				d.days.known[at] = where
			case ok && (pg.Code == lockNotAvailable || pg.Code == "42501"):
				// The day is made later and takes its rows over; they are not to wait.
				d.days.notYet[at] = now.Add(time.Minute)
				log.Error("a daily partition could not be made: its rows go to audit_log_default", "day", at.Format(time.DateOnly), "error", describe(err))
			default:
				return err
			}
		}
	}
	return nil
}

// openDay makes the partition of a day when it is not there, and returns where the
// rows of the day go: when the partition is not for us now, through audit_log for a minute.
func openDay(ctx context.Context, pool *pgxpool.Pool, at, now time.Time) (p placing, made bool, err error) {
	if made, err = makePartition(ctx, pool, at); err != nil {
		return p, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = pool.QueryRow(ctx, "SELECT batchyard_audit_partition($1::date)", at.Format(time.DateOnly)).Scan(&p.table)
	switch pg, ok := errors.AsType[*pgconn.PgError](err); {
	case err == nil && p.table != "":
		return p, made, nil
	case err == nil || ok && (pg.Code == "42501" || pg.Code == "42883"): // no right, or the schema is taken back
		return placing{auditLog, now.Add(time.Minute)}, made, nil
	}
	return p, made, fmt.Errorf("looking for the partition of %s: %w", at.Format(time.DateOnly), err)
}

// alarm says, at most once a minute, that rows go to the default partition. In
// notYet the day of no event at all stands for all that never get one.
func (d *db) alarm(at, now time.Time, log *slog.Logger) {
	if now.Before(d.days.notYet[time.Time{}]) {
		return
	}
	d.days.notYet[time.Time{}] = now.Add(time.Minute)
	log.Error("an event is of a day that gets no partition: its row goes to audit_log_default; the clock of who wrote it is wrong, or it is older than audit.retention",
		"day", at.Format(time.DateOnly))
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
