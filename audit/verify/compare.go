package verify

import (
	"context"
	"errors"
	"fmt"
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

// compareTables compares results, states, callbacks and rollups with the rows of the log, which are
// verified by then.
func (v *verifier) compareTables(ctx context.Context, tx pgx.Tx) error {
	if v.o.LogOnly {
		return nil
	}
	// Whatever the planner knows of the tables, looking up each row of one in another takes far longer than
	// hashing both.
	for _, set := range []string{"SET LOCAL enable_nestloop = off", "SET LOCAL work_mem = '64MB'"} {
		if _, err := tx.Exec(ctx, set); err != nil {
			return fmt.Errorf("preparing the session: %s: %w", set, err)
		}
	}
	o := tables.Options{Schema: v.schema, Before: v.report.Time.Add(-settling), Complete: v.completeFrom(), Hole: v.report.holes > 0}
	if v.o.Settled {
		o.Before = v.report.Time.Add(time.Hour)
	}
	for _, c := range tables.Checks {
		kind := GapResults
		if c.Rollup {
			kind = GapRollups
		}
		err := v.attempt(ctx, tx, kind, func(tx pgx.Tx) error {
			found, unproven, err := c.Run(ctx, tx, o)
			for _, f := range found {
				reason := Changed
				if f.Gone {
					reason = Missing
				}
				v.report.add(Finding{Reason: reason, Detail: f.What})
			}
			for _, g := range unproven {
				v.report.gap(kind, "%s", g)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	v.report.gap(GapColumns, "%s", tables.NotCovered())
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
	if errors.As(err, &refused) && ctx.Err() == nil && !pg.IsTransient(err) {
		v.report.gap(kind, "could not be compared: %s", pg.Describe(err))
		return nil
	}
	return err
}
