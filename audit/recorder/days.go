package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/partitions"
	"github.com/batchyard/batchyard/internal/pg"
)

// auditLog is the table that accepts the rows of every day; Postgres looks for the partition of each.
const auditLog = "audit_log"

// days is what a writer knows of the partitions of audit_log. It gathers the audit rows of a chunk
// by the tables that they are copied to.
//
// Most rows are of a day whose partition is known, and are copied straight into it. On the way
// through audit_log Postgres would look for the partition of every row and build each row twice,
// which is a twentieth of all its work. copy and queueCheck make the shortcut safe.
type days struct {
	known     map[time.Time]destination // of the rows of a day that has a partition
	retryAt   map[time.Time]time.Time   // days whose partition could not be created: when to try again
	nextAlarm time.Time                 // when an event of a day without a partition is logged again
	tables    map[string]*rowEncoder    // rows of the current chunk; bounded by its days
	suspect   string                    // a partition that did not accept its rows; the rows may be at fault

	last struct { // most events are of the same day as the one before
		day  time.Time
		rows *rowEncoder
	}
}

// destination is the table that the rows of a day are copied to.
type destination struct {
	table string
	until time.Time // when to ask again; zero: never
}

func newDays() days {
	return days{known: map[time.Time]destination{}, retryAt: map[time.Time]time.Time{}, tables: map[string]*rowEncoder{}}
}

// has reports whether the destination of rows of time t is known.
func (d *days) has(t, now time.Time) bool {
	to, ok := d.known[audit.DayOf(t)]
	return ok && (to.until.IsZero() || now.Before(to.until))
}

// closeTable sends the rows that went to a table through audit_log from now on: the partition was
// dropped, detached or modified. It is not created again.
func (d *days) closeTable(table string) {
	for at, to := range d.known {
		if to.table == table {
			d.known[at] = destination{table: auditLog}
		}
	}
}

// convict closes the suspect: audit_log has accepted the rows that it did not.
func (d *days) convict() {
	if d.suspect != "" {
		d.closeTable(d.suspect)
	}
	d.suspect = ""
}

// acquit clears the suspect: audit_log does not accept the rows either.
func (d *days) acquit() { d.suspect = "" }

// begin empties the tables for the next chunk, and forgets those that the last one had no rows for.
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

// rowsOf returns the rows that a row of time t joins. ok is false if its day has no partition.
func (d *days) rowsOf(t time.Time, m mode) (rows *rowEncoder, ok bool) {
	if since := t.Sub(d.last.day); d.last.rows != nil && since >= 0 && since < audit.Day {
		return d.last.rows, true
	}
	to, ok := d.known[audit.DayOf(t)]
	table := to.table
	if !ok || m != fast {
		table = auditLog
	}
	if rows = d.tables[table]; rows == nil {
		rows = &rowEncoder{}
		rows.B = make([]byte, 0, 1<<10) // a chunk may have a few rows of each of many days
		rows.resetCopy()
		d.tables[table] = rows
	}
	if ok {
		d.last.day, d.last.rows = audit.DayOf(t), rows
	}
	return rows, ok
}

// copy writes the rows that were gathered.
func (d *days) copy(ctx context.Context, tx pgx.Tx) error {
	if all := d.tables[auditLog]; all != nil && all.rows > 0 {
		if _, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(all.EndCopy()), copyRowsSQL(auditLog)); err != nil {
			return fmt.Errorf("writing %d audit rows: %w", all.rows, err)
		}
	}
	for _, table := range d.shortcuts() {
		rows := d.tables[table]
		if err := copyByShortcut(ctx, tx, copyRowsSQL(table), rows.rows, rows.EndCopy()); err != nil {
			if errors.Is(err, errShortcutClosed) {
				d.suspect = table
			}
			return fmt.Errorf("writing audit rows to %s: %w", table, err)
		}
	}
	return nil
}

// shortcuts returns the partitions that get rows of the current chunk, without audit_log itself.
func (d *days) shortcuts() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.tables)), func(table string) bool {
		return table == auditLog || d.tables[table].rows == 0
	})
}

// detachedSQL finds those of the given tables that are not partitions of audit_log.
const detachedSQL = `
SELECT name FROM unnest($1::text[]) AS t (name) WHERE NOT EXISTS (
	SELECT FROM pg_inherits WHERE inhrelid = to_regclass(name) AND inhparent = to_regclass('audit_log') AND NOT inhdetachpending)`

// queueCheck adds to a batch the question whether the tables that got rows are partitions. It
// comes after the COPY: detaching, dropping or renaming one of them waits from then on until
// this transaction has ended.
func (d *days) queueCheck(b *pgx.Batch) {
	tables := d.shortcuts()
	if len(tables) == 0 {
		return
	}
	b.Queue(detachedSQL, tables).Query(func(rows pgx.Rows) error {
		detached, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(detached) == 0 {
			return err
		}
		for _, table := range detached {
			d.closeTable(table)
		}
		return fmt.Errorf("%w: %v are no longer partitions of audit_log", errShortcutClosed, detached)
	})
}

// ensureDays creates the partitions that the days of a chunk lack. Rows older than the retention or
// far in the future go to the default partition: a wrong clock must not create thousands of tables.
func (w *chunkWriter) ensureDays(ctx context.Context, c chunk) error {
	now := time.Now()
	var seen time.Time // a day whose destination is known
	if at := audit.DayOf(now); !w.days.has(at, now) && slices.ContainsFunc(c, func(e *entry) bool { return e.result != nil }) {
		if err := w.ensureDay(ctx, at, now); err != nil { // of rows that are about results
			return err
		}
	}
	for _, e := range c {
		for i := range e.events {
			t := e.events[i].event.Time
			if since := t.Sub(seen); since >= 0 && since < audit.Day && !seen.IsZero() {
				continue
			}
			at := audit.DayOf(t)
			if w.days.has(at, now) {
				seen = at
				continue
			}
			if err := w.ensureDay(ctx, at, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *chunkWriter) ensureDay(ctx context.Context, at, now time.Time) error {
	if at.Before(audit.DayOf(now.Add(-w.cfg.Retention))) || at.After(audit.DayOf(now).Add(partitions.DaysAhead*audit.Day)) {
		if !now.Before(w.days.nextAlarm) {
			w.days.nextAlarm = now.Add(time.Minute)
			w.Logger.Error("an event of a day that gets no partition: its row goes to audit_log_default; the clock of its writer is wrong, or it is older than audit.retention",
				"day", at.Format(time.DateOnly))
		}
		return nil
	}
	if now.Before(w.days.retryAt[at]) {
		return nil
	}
	to, created, err := openDay(ctx, w.Pool, at, now)
	if created {
		w.Metrics.Audit.PartitionsMade.Inc()
	}
	switch code := pg.Code(err); {
	case err == nil:
		w.days.known[at] = to
	case code == pg.LockNotAvailable || code == pg.InsufficientPrivilege:
		// Creating the partition later moves the rows into it; they do not wait for that.
		w.days.retryAt[at] = now.Add(time.Minute)
		w.Logger.Error("a daily partition could not be created: its rows go to audit_log_default", "day", at.Format(time.DateOnly), "error", pg.Describe(err))
	default:
		return err
	}
	return nil
}

// openDay creates the partition of a day if it does not exist, and returns the destination of the
// day's rows: for a minute audit_log, if the partition may not be written to directly now.
func openDay(ctx context.Context, pool *pgxpool.Pool, at, now time.Time) (to destination, created bool, err error) {
	if created, err = partitions.Create(ctx, pool, at); err != nil {
		return to, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = pool.QueryRow(ctx, "SELECT batchyard_audit_partition($1::date)", at.Format(time.DateOnly)).Scan(&to.table)
	switch code := pg.Code(err); {
	case err == nil && to.table != "":
		return to, created, nil
	case err == nil || code == pg.InsufficientPrivilege || code == pg.UndefinedFunction: // not allowed, or an older schema
		return destination{auditLog, now.Add(time.Minute)}, created, nil
	}
	return to, created, fmt.Errorf("looking for the partition of %s: %w", at.Format(time.DateOnly), err)
}
