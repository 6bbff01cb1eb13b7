// Package tables compares the tables that people read (results, tasks, callbacks, jobs, rollups) with the
// rows of the audit log, which hashes protect, in the snapshot in which package verify has checked those.
//
//	log ──one pass──▶ Log.Take: digests of rows ──▶ index: key → digest of the highest version
//	             └──▶ Counter.Row: what rollups count, and how tasks ended ──▶ totals for each day
//	results, tasks, callbacks, jobs ──one pass──▶ SHA-256 of each row ──▶ is it that of its key? which keys are left?
//	rollups ──one pass──▶ is what they count what is left of the totals?
//
// Recorders write the digest of a row in the transaction that writes the row, so within a snapshot both match.
// Only if something does not, it is compared again, in SQL and for the tasks and days concerned, to say what is
// wrong: with the events of how a task ended, and key by key of a rollup.
//
// Events and results come through different topics, and a process that dies may have written one and not the
// other. So the event of an end proves nothing that is younger than its result may be, or after which the task ran
// again, or if the log has holes; these are reported as unproven. An event that contradicts what the tables say
// is a finding.
package tables

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/internal/pg"
)

// Options say what to compare.
type Options struct {
	Schema   string    // that has the tables
	Now      time.Time // of the snapshot
	Before   time.Time // events recorded before must have their results
	Complete time.Time // the log has all rows from this time on; zero: from its beginning
	Partial  bool      // rows before were left out on purpose
	MaxRows  int       // bound of the rows whose digests are kept in memory
	Hole     bool      // Kafka deleted records before they were recorded: that an event or a result is not there proves nothing
}

// Found is something that contradicts the log.
type Found struct {
	What string
	Gone bool // a row is missing
}

// Bookkeeping lists the columns that the log does not prove, by table. They say what processes are about to do, or
// when they last wrote, and nothing about what has happened.
var Bookkeeping = []struct {
	Table   string
	Columns []string
}{
	{"callbacks", []string{"next_at", "holder"}},
	{"stream_offsets", []string{"epoch", "owner", "topic_id", "cluster_id", "updated_at"}},
	{"stream_breaks", []string{"resolved_at"}},
	{"audit_chains", []string{"updated_at"}},
	{"audit_dropped", []string{"dropped_at"}},
	{"audit_checkpoints", []string{"signer", "number", "hashes", "line"}},
	{"rollup_usage", []string{"shard"}},
	{"rollup_latency", []string{"shard"}},
	{"rollup_attempts", []string{"shard"}},
	{"rollup_batches", []string{"shard"}},
	{"rollup_submissions", []string{"shard"}},
	{"batchyard_schema", []string{"id", "tstamp"}},
}

// NotProven says which columns the log does not prove, and what else it does not.
func NotProven() string {
	var all []string
	for _, b := range Bookkeeping {
		all = append(all, b.Table+" ("+strings.Join(b.Columns, ", ")+")")
	}
	return "not proven: " + strings.Join(all, "; ") + "; when a sender's first and last submissions were, in rows of rollup_submissions that have other shards of the same sender and day" +
		"; nor what someone changed in the row of an unfinished task or job before a recorder wrote it again"
}

// NotSeen says what reading the rows cannot show.
const NotSeen = "verify proves the rows, which it reads in the order of the disk. It trusts Postgres to do what it says: someone with the rights of a superuser can damage an index, " +
	"change the system catalogs or the program, and then queries of others do not show these rows. Indexes are only sampled. If you need answers that you can trust, query a copy that was dumped and restored elsewhere, and verify that"

// margin is how much later than the first complete day a row must have been written for the log to be sure to have
// its digest.
const margin = 2 * audit.Day

// Pass is the reading of a part of a table.
type Pass struct {
	Table string // its name
	sql   string
	width int
	take  func(l *Log, c *Counter, r *copyrows.Row)
}

// Query returns what to read, with a condition; empty: everything. The table has the alias t.
func (p *Pass) Query(where string) (sql string, width int) {
	if where != "" {
		where = " WHERE " + where
	}
	return p.sql + where, p.width
}

// Take compares a row. c is of the goroutine that calls it.
func (p *Pass) Take(l *Log, c *Counter, r *copyrows.Row) { p.take(l, c, r) }

// Passes returns what has to be read, the largest tables first.
func (l *Log) Passes(schema string) []Pass {
	in := pgx.Identifier{schema}.Sanitize() + "."
	edge := int64(-1 << 62)
	if !l.complete.IsZero() {
		edge = l.complete.Add(margin).UnixMicro()
	}
	old := func(r *copyrows.Row, i int) bool { return r.Int8(i)+pg.Epoch < edge }
	all := []Pass{
		{"results", "SELECT " + audit.ResultColumns + ", recorded_at FROM " + in + "results t", 28, func(l *Log, c *Counter, r *copyrows.Row) {
			l.result(r, old(r, 27))
			c.result(r)
		}},
		{"tasks", "SELECT " + audit.TaskColumns + ", version FROM " + in + "tasks t", 27, func(l *Log, _ *Counter, r *copyrows.Row) { l.task(r, l.partial || old(r, 14)) }},
		{"callbacks", "SELECT " + audit.DeliveryColumns + ", " + audit.CallbackColumns + ", created_at FROM " + in + "callbacks t", 16, func(l *Log, _ *Counter, r *copyrows.Row) { l.callback(r, old(r, 15)) }},
		{"jobs", "SELECT " + audit.JobColumns + ", version FROM " + in + "jobs t", 18, func(l *Log, _ *Counter, r *copyrows.Row) { l.job(r, l.partial || old(r, 11)) }},
	}
	for i := range rollups {
		sql, width := rollups[i].keptQuery(in)
		all = append(all, Pass{rollups[i].table, sql + " t", width, func(_ *Log, c *Counter, r *copyrows.Row) { c.kept(i, r) }})
	}
	return all
}

// Check is a comparison in SQL, of some tasks or days.
type Check struct {
	name  string
	byDay bool
	with  string // common table expressions of the queries
	// found, gone and unproven are queries of one column: a sentence about each row that is wrong, that is
	// missing, or that nothing in the log is about. given.before is Options.Before, given.complete
	// Options.Complete, given.hole Options.Hole, and @ the schema.
	found, gone, unproven string
}

// most bounds the rows of each kind that a query returns.
const most = 100

// statement returns the query of all kinds, which reads only what concerns the tasks or days in $3. $4 and $5 are
// the times between which these days are.
func (c Check) statement(schema string) string {
	var kinds []string
	for _, q := range []struct{ kind, sql string }{{"found", c.found}, {"gone", c.gone}, {"unproven", c.unproven}} {
		if q.sql != "" {
			kinds = append(kinds, fmt.Sprintf("SELECT '%s', what FROM (SELECT what FROM (%s) q (what) WHERE what IS NOT NULL ORDER BY 1 LIMIT %d) l", q.kind, q.sql, most))
		}
	}
	with := "given AS (SELECT $1::timestamptz AS before, $2::timestamptz AS complete, $4::timestamptz AS since, $5::timestamptz AS until, $6::boolean AS hole)"
	of := map[string]string{"audit_log": "time >= $4 AND time < $5", "results": "finished_at >= $4 AND finished_at < $5"}
	if !c.byDay {
		of = map[string]string{"audit_log": "task_id = ANY ($3::text[])", "results": "task_id = ANY ($3::text[])", "tasks": "task_id = ANY ($3::text[])"}
	}
	body := c.with + " " + strings.Join(kinds, " UNION ALL ")
	for table, where := range of {
		with += fmt.Sprintf(", %[1]s_of AS MATERIALIZED (SELECT * FROM @%[1]s WHERE %[2]s)", table, where)
		for _, after := range []string{" ", ")", "\n"} {
			body = strings.ReplaceAll(body, "@"+table+after, table+"_of"+after)
		}
	}
	return strings.ReplaceAll("WITH "+with+", "+body, "@", pgx.Identifier{schema}.Sanitize()+".")
}

// run compares.
func (c Check) run(ctx context.Context, tx pgx.Tx, o Options, of []string, since, until time.Time) (found []Found, unproven []string, err error) {
	complete := o.Complete
	if complete.IsZero() {
		complete = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	rows, err := tx.Query(ctx, c.statement(o.Schema), o.Before, complete, of, since, until, o.Hole)
	if err != nil {
		return nil, nil, fmt.Errorf("comparing %s with the log: %w", c.name, err)
	}
	var kind, what string
	_, err = pgx.ForEachRow(rows, []any{&kind, &what}, func() error {
		if kind == "unproven" {
			unproven = append(unproven, what)
			return nil
		}
		found = append(found, Found{what, kind == "gone"})
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("comparing %s with the log: %w", c.name, err)
	}
	return found, unproven, nil
}

// Explain compares the rows that differ with the events of their tasks, to say what is wrong with them. What
// events do not explain is reported as it is. It does the same for tasks that may have ended otherwise than any
// result says; unproven says of which nothing can be said.
func (l *Log) Explain(ctx context.Context, tx pgx.Tx, o Options) (found []Found, unproven []string, err error) {
	differ := ids(l.differ)
	ended, more, err := l.endedOtherwise(ctx, tx, o)
	if err != nil {
		return nil, nil, err
	}
	if more > 0 {
		unproven = append(unproven, fmt.Sprintf("%d more tasks may have ended otherwise than their results say: only %d were compared", more, len(ended)))
	}
	for _, of := range []struct {
		Check
		tasks []string
	}{{ends, slices.Compact(slices.Sorted(slices.Values(slices.Concat(differ, ended))))}, {states, differ}} {
		if len(of.tasks) == 0 {
			continue
		}
		f, u, err := of.run(ctx, tx, o, of.tasks, o.Now, o.Now)
		if err != nil {
			return nil, nil, err
		}
		found, unproven = append(found, f...), append(unproven, u...)
	}
	var text strings.Builder
	for _, f := range found {
		text.WriteString(f.What + "\n")
	}
	explained := text.String()
	for _, r := range l.differ {
		if !strings.Contains(explained, r.Table) || !strings.Contains(explained, "task "+r.Tenant+"/"+r.ID+" ") && !strings.Contains(explained, "task "+r.Tenant+"/"+r.ID+",") {
			found = append(found, Found{r.What, r.Gone})
		}
	}
	return found, unproven, nil
}

// Rollups compares the days on which totals differ key by key.
func (l *Log) Rollups(ctx context.Context, tx pgx.Tx, o Options) (found []Found, err error) {
	slices.Sort(l.counted.absurd)
	for _, what := range l.counted.absurd {
		found = append(found, Found{What: what})
	}
	for i := range rollups {
		days := l.counted.differingDays(i)
		if i == countsSubmissions && len(days) == 0 && l.counted.sendersDiffer() {
			days = l.counted.allDays(i)
		}
		if len(days) == 0 {
			continue
		}
		names := make([]string, 0, len(days))
		for _, d := range days {
			names = append(names, dayOf(d).Format(time.DateOnly))
		}
		more, _, err := rollups[i].check().run(ctx, tx, o, names, dayOf(days[0]), dayOf(days[len(days)-1]+1))
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}
