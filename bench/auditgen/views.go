package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// viewOptions say what is measured where.
type viewOptions struct {
	URL, Docs, Plans, Cold string
	Note                   string // where it was measured, for the page
	Repeat                 int
	Out                    io.Writer
}

// example is a query of the page, under the heading that it stands under.
type example struct{ Name, SQL string }

// figures are how long an example took.
type figures struct {
	example
	Rows           int
	Cold, P50, Max time.Duration
	Plan           []string
}

// examples reads the blocks of SQL of a page that begin with SELECT or WITH.
func examples(path string) (all []example, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the examples: %w", err)
	}
	heading, n := "", 0
	var sql []string
	inside := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case inside && line == "```":
			inside = false
			text := strings.TrimSuffix(strings.TrimSpace(strings.Join(sql, "\n")), ";")
			if head := strings.ToUpper(text); strings.HasPrefix(head, "SELECT") || strings.HasPrefix(head, "WITH") {
				n++
				name := heading
				if n > 1 {
					name = fmt.Sprintf("%s (%d)", heading, n)
				}
				all = append(all, example{name, text})
			}
		case inside:
			sql = append(sql, line)
		case line == "```sql":
			inside, sql = true, nil
		case strings.HasPrefix(line, "### "), strings.HasPrefix(line, "## "):
			heading, n = strings.ReplaceAll(strings.TrimLeft(line, "# "), "`", ""), 0
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no examples in SQL", path)
	}
	return all, nil
}

func views(ctx context.Context, o viewOptions) error {
	all, err := examples(o.Docs)
	if err != nil {
		return err
	}
	var done []figures
	for _, e := range all {
		f, err := measure(ctx, o, e)
		if err != nil {
			return fmt.Errorf("the example of %s: %w", e.Name, err)
		}
		done = append(done, f)
		fmt.Fprintf(o.Out, "%-28s %6d rows  first %8s  p50 %8s  max %8s\n", f.Name, f.Rows, ms(f.Cold), ms(f.P50), ms(f.Max))
	}
	if o.Plans == "" {
		return nil
	}
	return writePlans(ctx, o, done)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// measure runs an example: first on a new connection, with empty caches if there
// is a command for that, then again and again.
func measure(ctx context.Context, o viewOptions, e example) (f figures, err error) {
	f.example = e
	if o.Cold != "" {
		if out, err := exec.CommandContext(ctx, "sh", "-c", o.Cold).CombinedOutput(); err != nil {
			return f, fmt.Errorf("emptying the caches: %w: %s", err, out)
		}
	}
	cfg, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return f, fmt.Errorf("reading the Postgres URL: %w", err)
	}
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return f, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var times []time.Duration
	for i := range max(2, o.Repeat) {
		start := time.Now()
		// Planned anew each time, as when somebody types it.
		rows, err := conn.Query(ctx, e.SQL, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return f, err
		}
		f.Rows = 0
		for rows.Next() {
			f.Rows++
		}
		if err := rows.Err(); err != nil {
			return f, err
		}
		if took := time.Since(start); i == 0 {
			f.Cold = took
		} else {
			times = append(times, took)
		}
	}
	slices.Sort(times)
	f.P50, f.Max = times[len(times)/2], times[len(times)-1]
	plan, err := conn.Query(ctx, "EXPLAIN (ANALYZE, BUFFERS) "+e.SQL, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return f, err
	}
	f.Plan, err = pgx.CollectRows(plan, pgx.RowTo[string])
	return f, err
}

// planLines is up to how many lines of a plan are shown: those of a partition
// are all alike.
const planLines = 60

func writePlans(ctx context.Context, o viewOptions, all []figures) error {
	conn, err := pgx.Connect(ctx, o.URL)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var version string
	var rows, tasks, partitions int64
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), (SELECT sum(rows) FROM audit_chains)::bigint, (SELECT count(*) FROM tasks),
		(SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_log'::regclass)`).Scan(&version, &rows, &tasks, &partitions)
	if err != nil {
		return fmt.Errorf("counting the rows: %w", err)
	}
	note, emptied := "", ""
	if o.Note != "" {
		note = " " + o.Note
	}
	if o.Cold != "" {
		emptied = ",\nwith the caches of Postgres and of the system emptied before"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Times and plans of the views

Written by `+"`go run ./bench/auditgen views -plans docs/sql-plans.md`"+` on what `+"`auditgen load`"+` made: the
examples of [sql.md](sql.md) on %d audit rows in %d partitions and %d tasks,
Postgres %s.%s

Each example was run %d times, by itself. *first* is the first run on a new connection%s;
the others follow at once. Times are those of the client, planning and all.

| example | rows | first | p50 | max |
|---|---|---|---|---|
`, rows, partitions, tasks, strings.Fields(version)[0], note, max(2, o.Repeat), emptied)
	for _, f := range all {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", f.Name, f.Rows, ms(f.Cold), ms(f.P50), ms(f.Max))
	}
	for _, f := range all {
		fmt.Fprintf(&b, "\n## %s\n\n```sql\n%s;\n```\n\n```text\n", f.Name, f.SQL)
		for i, line := range f.Plan {
			if i >= planLines && i < len(f.Plan)-3 {
				if i == planLines {
					fmt.Fprintf(&b, "… %d lines more …\n", len(f.Plan)-planLines-3)
				}
				continue
			}
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
		b.WriteString("```\n")
	}
	if err := os.WriteFile(o.Plans, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a page of the documentation
		return fmt.Errorf("writing the plans: %w", err)
	}
	return nil
}
