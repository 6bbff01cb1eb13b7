package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/catalog"
	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/internal/pg"
)

// settling is how much later than its event a result may be recorded, and the other way round: they come
// through different topics.
const settling = 10 * time.Minute

// compareDefinitions compares tables, views, functions and triggers with the migrations: people read the
// log through views, and someone who replaced one shows them another log.
func (v *verifier) compareDefinitions(ctx context.Context, tx pgx.Tx) error {
	if v.o.LogOnly {
		return nil
	}
	var seen *audit.SchemaVersion
	if v.schemaSeen != nil && v.report.Statements > 0 {
		seen = v.schemaSeen.Schema
	}
	return v.attempt(ctx, tx, GapDefinitions, func(tx pgx.Tx) error {
		found, unproven, err := catalog.Check(ctx, tx, v.schema, seen)
		for _, f := range found {
			v.report.add(Finding{Reason: Definition, Detail: f})
		}
		if unproven != "" {
			v.report.gap(GapDefinitions, "%s", unproven)
		}
		return err
	})
}

// tableOptions says what to compare. Whether the log has holes is known once its rows were read.
func (v *verifier) tableOptions() tables.Options {
	o := tables.Options{Schema: v.schema, Now: v.report.Time, Before: v.report.Time.Add(-settling), Complete: v.completeFrom(), MaxRows: v.o.MaxRows, Hole: v.report.holes > 0}
	if v.o.Settled {
		o.Before = v.report.Time.Add(time.Hour)
	}
	if since := audit.DayOf(v.o.Since); !v.o.Since.IsZero() && since.After(o.Complete) {
		o.Complete, o.Partial = since, true
	}
	return o
}

// compareTables compares results, states, callbacks, jobs and rollups with the rows of the log, which are
// verified by then.
func (v *verifier) compareTables(ctx context.Context, tx pgx.Tx) error {
	if v.tables == nil {
		return nil
	}
	v.report.note("%s", tables.NotProven())
	v.report.note("%s", tables.NotSeen)
	if v.damaged() {
		v.tables.Damaged()
	}
	if v.report.again > 0 || len(v.recovered) > 0 || len(v.restores) > 0 {
		v.tables.FellBack()
	}
	if err := v.attempt(ctx, tx, GapResults, func(tx pgx.Tx) error { return v.compareRows(ctx, tx) }); err != nil {
		return err
	}
	err := v.attempt(ctx, tx, GapDefinitions, func(tx pgx.Tx) error {
		var partitions []string
		for _, p := range slices.Backward(v.newer) {
			if p.direct && p.size > 0 {
				partitions = append(partitions, p.full)
			}
		}
		found, err := catalog.SampleIndexes(ctx, tx, v.schema, partitions)
		for _, f := range found {
			v.report.add(Finding{Reason: Definition, Detail: f})
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, set := range []string{"SET LOCAL enable_indexscan = on", "SET LOCAL enable_bitmapscan = on", "SET LOCAL work_mem = '64MB'"} {
		if _, err := tx.Exec(ctx, set); err != nil {
			return fmt.Errorf("preparing the session: %s: %w", set, err)
		}
	}
	o := v.tableOptions()
	if err := v.nameMissing(ctx, tx); err != nil {
		return err
	}
	differ, many := v.tables.Differing()
	before := v.report.Count
	err = v.attempt(ctx, tx, GapResults, func(tx pgx.Tx) error {
		found, unproven, err := v.tables.Explain(ctx, tx, o)
		v.addFound(found)
		for _, g := range unproven {
			v.report.gap(GapResults, "%s", g)
		}
		return err
	})
	if err != nil {
		return err
	}
	if v.report.Count == before { // what differs could not be explained
		for _, r := range differ {
			v.addFound([]tables.Found{{What: r.What, Gone: r.Gone}})
		}
	}
	if more := many - int64(len(differ)); more > 0 {
		v.report.add(Finding{Reason: Changed, Detail: fmt.Sprintf("%d more rows of results, tasks, callbacks or jobs are not as the log says", more)})
	}
	for _, g := range v.tables.Unproven() {
		v.report.gap(GapResults, "%s", g)
	}
	if v.tables.OlderRollups() && !o.Partial {
		v.report.gap(GapRollups, "rollups of days before %s, of which the log no longer has all rows", o.Complete.Format(time.DateOnly))
	}
	return v.attempt(ctx, tx, GapRollups, func(tx pgx.Tx) error {
		found, err := v.tables.Rollups(ctx, tx, o)
		v.addFound(found)
		return err
	})
}

// damaged reports whether rows of the log are missing or were changed.
func (v *verifier) damaged() bool {
	if v.unknownCount > 0 {
		return true
	}
	for _, c := range v.chains {
		if c.count > c.holeCount { // those of holes are among them
			return true
		}
	}
	return false
}

func (v *verifier) addFound(found []tables.Found) {
	for _, f := range found {
		reason := Changed
		if f.Gone {
			reason = Missing
		}
		v.report.add(Finding{Reason: reason, Detail: f.What})
	}
}

// nameMissing finds out which rows are gone of which the log has a digest. It reads the names of all tasks and jobs,
// so it is only for when something is wrong.
func (v *verifier) nameMissing(ctx context.Context, tx pgx.Tx) error {
	missing := func() (n int64) {
		for _, of := range v.tables.Missing() {
			n += of
		}
		return n
	}
	if missing() == 0 {
		return nil
	}
	names := v.tables.Namer()
	for _, kind := range []string{"task_id", "job_id"} {
		rows, err := tx.Query(ctx, fmt.Sprintf("SELECT DISTINCT tenant, %[1]s FROM %[2]s WHERE %[1]s IS NOT NULL AND tenant IS NOT NULL", kind, v.table("audit_log")))
		if err != nil {
			return fmt.Errorf("looking up what is missing: %w", err)
		}
		var tenant, id string
		if _, err := pgx.ForEachRow(rows, []any{&tenant, &id}, func() error {
			names.Name(tenant, id, kind == "task_id")
			return nil
		}); err != nil {
			return fmt.Errorf("looking up what is missing: %w", err)
		}
	}
	for table, n := range v.tables.Missing() {
		if n > 0 {
			v.report.add(Finding{Reason: Missing, Detail: fmt.Sprintf("%d rows of the table %s are gone, and no row of the log names them", n, table)})
		}
	}
	return nil
}

// completeFrom returns the time from which on the log has all rows; zero: from its beginning.
func (v *verifier) completeFrom() (from time.Time) {
	for _, r := range v.dropped {
		if day, err := time.Parse(time.DateOnly, r.day); err == nil && !day.Add(audit.Day).Before(from) {
			from = day.Add(audit.Day)
		}
	}
	return from
}

// attempt does something that values in the tables may make impossible, such as text that is not JSON.
// Then it could not be proven; that is no reason not to report the rest.
func (v *verifier) attempt(ctx context.Context, tx pgx.Tx, kind GapKind, do func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, tx, do)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && ctx.Err() == nil && (!pg.IsTransient(err) || pg.IsTimeout(err)) {
		v.report.gap(kind, "could not be compared: %s", pg.Describe(err))
		return nil
	}
	return err
}
