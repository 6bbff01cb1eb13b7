// Package tables compares the tables that people read (results, tasks, callbacks, jobs, rollups) with the
// rows of the audit log, which hashes protect. It does so in SQL, in the snapshot in which package verify
// has checked the rows.
//
// Events and results come through different topics, and a process that dies may have written one and not the
// other. So a result without an event proves nothing, and neither does an event that is younger than its result
// may be, or after which the task ran again; these are reported as unproven. An event that contradicts what the tables
// say is a finding.
package tables

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options say what to compare.
type Options struct {
	Schema   string    // that has the tables
	Before   time.Time // events recorded before must have their results
	Complete time.Time // the log has all rows from this time on; zero: from its beginning
	Hole     bool      // Kafka deleted records before they were recorded: that an event or a result is not there proves nothing
}

// Found is something that contradicts the log.
type Found struct {
	What string
	Gone bool // a row is missing
}

// Uncovered lists the columns that no row of the log can prove, by table.
var Uncovered = []struct {
	Table   string
	Columns []string
}{
	{"results", []string{"labels", "custom_id", "error_message", "attempts", "requested_model", "endpoint", "priority", "fingerprint", "status", "output", "assigned_at", "started_at", "submitted_at", "recorded_at", "callback_url"}},
	{"tasks", []string{"custom_id", "error_message", "fingerprint", "priority", "endpoint", "model", "job_id", "trace_id", "callback_url", "deadline", "seq", "version", "known_from", "submitted_at", "assigned_at", "started_at", "finished_at", "updated_at", "error_class", "input_tokens", "output_tokens"}},
	{"callbacks", []string{"url", "body", "next_at", "holder", "last_error", "last_status", "created_at", "delivered_at"}},
	{"jobs", []string{"summary", "labels", "callback_url", "format", "rounds", "submitted_at", "cancel_requested_at", "finished_at"}},
	{"stream_offsets", []string{"next_offset", "epoch", "owner", "topic_id", "cluster_id", "updated_at"}},
	{"stream_breaks", []string{"resolved_at"}},
	{"audit_chains", []string{"updated_at"}},
	{"batchyard_schema", []string{"tstamp"}},
}

// NotCovered says which columns no row of the log can prove.
func NotCovered() string {
	var all []string
	for _, u := range Uncovered {
		all = append(all, u.Table+" ("+strings.Join(u.Columns, ", ")+")")
	}
	return "the log has no copy of these columns, or only for some rows: " + strings.Join(all, "; ")
}

// Check is one comparison.
type Check struct {
	name   string
	Rollup bool
	with   string // common table expressions of the queries
	// found, gone and unproven are queries of one column: a sentence about each row that is wrong, that is
	// missing, or that nothing in the log is about. given.before is Options.Before, given.complete
	// Options.Complete, given.hole Options.Hole, and @ the schema.
	found, gone, unproven string
}

// most bounds the rows of each kind that a query returns.
const most = 100

// statement returns the query of all kinds, so that the log is read once.
func (c Check) statement(schema string) string {
	var kinds []string
	for _, q := range []struct{ kind, sql string }{{"found", c.found}, {"gone", c.gone}, {"unproven", c.unproven}} {
		if q.sql != "" {
			kinds = append(kinds, fmt.Sprintf("SELECT '%s', what FROM (SELECT what FROM (%s) q (what) WHERE what IS NOT NULL ORDER BY 1 LIMIT %d) l", q.kind, q.sql, most))
		}
	}
	with := "given AS (SELECT $1::timestamptz AS before, $2::timestamptz AS complete, $3::boolean AS hole)"
	if c.with != "" {
		with += ", " + c.with
	}
	return strings.ReplaceAll("WITH "+with+" "+strings.Join(kinds, " UNION ALL "), "@", pgx.Identifier{schema}.Sanitize()+".")
}

// Run compares. The search path of the transaction must have no schema but pg_catalog.
func (c Check) Run(ctx context.Context, tx pgx.Tx, o Options) (found []Found, unproven []string, err error) {
	complete := o.Complete
	if complete.IsZero() {
		complete = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	rows, err := tx.Query(ctx, c.statement(o.Schema), o.Before, complete, o.Hole)
	if err != nil {
		return nil, nil, fmt.Errorf("comparing %s with the log: %w", c.name, err)
	}
	var kind, what string
	_, err = pgx.ForEachRow(rows, []any{&kind, &what}, func() error {
		if kind == "unproven" {
			unproven = append(unproven, what)
		} else {
			found = append(found, Found{what, kind == "gone"})
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("comparing %s with the log: %w", c.name, err)
	}
	return found, unproven, nil
}

// Checks are all comparisons.
var Checks = append([]Check{ends, states, callbacks, jobs}, rollups...)
