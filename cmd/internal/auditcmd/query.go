package auditcmd

import (
	"context"
	"encoding/csv"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// shownColumns are the default columns of a table.
var shownColumns = []string{"time", "action", "outcome", "error_class", "tenant", "task_id", "device_id", "attempt", "actor_id", "source_addr", "duration_ms", "detail"}

// usualWidths are the initial widths of the columns of a live table, whose header is
// written before its first row is known.
var usualWidths = map[string]int{
	"time": 24, "ingested_at": 24, "action": 23, "error_class": 12, "tenant": 12, "actor_id": 28, "source_addr": 21,
	"resource_id": 36, "task_id": 36, "job_id": 36, "batch_id": 36, "trace_id": 32, "device_id": 16, "model": 16, "user_agent": 24, "src_topic": 12,
}

// rowFlags are the flags for how rows are shown.
type rowFlags struct {
	columns string
	csv     bool
	live    bool // not a flag: each row is written at once
}

func (r *rowFlags) flags(c *cli.Env, cmd *cobra.Command) {
	c.JSONFlag(cmd)
	cmd.Flags().BoolVar(&r.csv, "csv", false, "print CSV, with all columns unless --columns names some; cells that a spreadsheet would compute start with a '")
	cmd.Flags().StringVar(&r.columns, "columns", "", "`names` of columns, separated by commas, or all")
}

// chosen returns the columns to show; nil means whole rows, as JSON.
func (r *rowFlags) chosen(c *cli.Env) ([]query.Column, error) {
	if c.JSON && r.csv {
		return nil, cli.UsageError("--json and --csv cannot be combined")
	}
	names := strings.Split(r.columns, ",")
	switch {
	case r.columns == "all", r.columns == "" && r.csv:
		return query.Columns, nil
	case r.columns == "" && c.JSON:
		return nil, nil
	case r.columns == "":
		names = shownColumns
	}
	out := make([]query.Column, 0, len(names))
	for _, name := range names {
		column, ok := query.FindColumn(strings.TrimSpace(name))
		if !ok {
			all := make([]string, len(query.Columns))
			for i, col := range query.Columns {
				all[i] = col.Name
			}
			return nil, cli.UsageError("--columns: unknown column %q: use %s", name, cli.Or(all))
		}
		out = append(out, column)
	}
	return out, nil
}

// rowWriter writes rows of the audit log as a table, JSON or CSV.
type rowWriter struct {
	c       *cli.Env
	columns []query.Column
	csv     *csv.Writer
	table   *cli.Table
	n       int
	live    bool // each row is written at once
	widths  []int
	header  []string // of a live table, until it is written
}

func newRowWriter(c *cli.Env, r *rowFlags) (*rowWriter, error) {
	columns, err := r.chosen(c)
	if err != nil {
		return nil, err
	}
	w := &rowWriter{c: c, columns: columns, live: r.live}
	header := make([]string, len(columns))
	switch {
	case c.JSON:
		return w, nil
	case r.csv:
		w.csv = csv.NewWriter(c.Out)
		for i, col := range columns {
			header[i] = col.Name
		}
		return w, w.csv.Write(header)
	}
	for i, col := range columns {
		header[i] = strings.ToUpper(strings.ReplaceAll(col.Name, "_", " "))
	}
	if r.live {
		// Not written yet: it tells the reader that from now on no row is missed.
		w.widths, w.header = make([]int, len(header)), header
		for i, col := range columns {
			w.widths[i] = usualWidths[col.Name] // more where the header is wider
		}
		return w, nil
	}
	w.table = cli.NewTable(c.Out, header...)
	return w, nil
}

// begin writes the header of a live table, once.
func (w *rowWriter) begin() {
	if header := w.header; header != nil {
		w.header = nil
		w.line(header)
	}
}

// line writes a row of an endless table, whose columns only get wider.
func (w *rowWriter) line(cells []string) {
	w.begin()
	var b strings.Builder
	for i, cell := range cells {
		if cell = cli.Plain(cell); cell == "" {
			cell = "-"
		}
		n := utf8.RuneCountInString(cell)
		w.widths[i] = max(w.widths[i], min(n, 40))
		b.WriteString(cell)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", max(w.widths[i]-n, 0)+2))
		}
	}
	w.c.Printf("%s\n", b.String())
}

// row writes one row. Rows of a table are written in blocks.
func (w *rowWriter) row(r *query.Row) error {
	w.n++
	cells := make([]string, len(w.columns))
	for i, col := range w.columns {
		cells[i] = col.Text(r)
	}
	switch {
	case w.c.JSON && w.columns != nil:
		return w.c.PrintJSON(named(w.columns, cells))
	case w.c.JSON:
		return w.c.PrintJSON(r)
	case w.csv != nil:
		for i := range cells {
			cells[i] = noFormula(cells[i])
		}
		if err := w.csv.Write(cells); err != nil {
			return fmt.Errorf("writing CSV: %w", err)
		}
		if w.live {
			return w.flush()
		}
		return nil
	}
	for i, col := range w.columns {
		switch col.Name {
		case "time", "ingested_at":
			cells[i] = cells[i][:min(len(cells[i]), 23)] + "Z" // milliseconds are enough for people
		case "detail", "user_agent":
			cells[i] = cli.Short(cells[i], 100)
		}
	}
	if w.live {
		w.line(cells)
		return nil
	}
	w.table.Row(cells...)
	if w.n%cli.FlushEvery == 0 {
		return w.table.Flush()
	}
	return nil
}

// noFormula quotes a cell that a spreadsheet would compute. Clients choose their own
// names, and the auditor's spreadsheet must not run them.
func noFormula(cell string) string {
	if cell != "" && strings.Contains("=+-@\t\r", cell[:1]) {
		return "'" + cell
	}
	return cell
}

// named returns the chosen columns of a row for JSON, without the empty ones.
func named(columns []query.Column, cells []string) map[string]string {
	out := map[string]string{}
	for i, col := range columns {
		if cells[i] != "" {
			out[col.Name] = cells[i]
		}
	}
	return out
}

func (w *rowWriter) flush() error {
	w.begin()
	switch {
	case w.csv != nil:
		w.csv.Flush()
		if err := w.csv.Error(); err != nil {
			return fmt.Errorf("writing CSV: %w", err)
		}
	case w.table != nil:
		return w.table.Flush()
	}
	return nil
}

func auditQueryCommand(c *cli.Env) *cobra.Command {
	var s searchFlags
	var r rowFlags
	var order string
	all := false
	cmd := &cobra.Command{
		Use: "query", Short: "Search the audit log",
		Long: `Shows the rows of the audit log that match all filters, newest first, or oldest
first with --order asc. In a filter, * stands for any text. Times are in UTC.`,
		Example: `  batchyard audit query --task my-task-1 --order asc
  batchyard audit query --action 'callback.*' --outcome failed --since 2h
  batchyard audit query --source 203.0.113.7 --since 2026-01-31 --until 2026-02-01 --all --csv > that-day.csv
  batchyard audit query --action task.refused --json | jq -c .detail`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := s.search(c.Now())
			switch {
			case err != nil:
				return err
			case all && cmd.Flags().Changed("limit"):
				return cli.ErrLimitAll
			case f.Limit < 1:
				return cli.UsageError("--limit must be at least 1; --all shows everything")
			case order != "asc" && order != "desc":
				return cli.UsageError("unknown order %q: use asc or desc", order)
			}
			f.Oldest = order == "asc"
			if all {
				f.Limit = 0
			}
			return auditQuery(cmd.Context(), c, s.postgres, f, &r)
		},
	}
	s.flags(c, cmd)
	r.flags(c, cmd)
	cmd.Flags().IntVar(&s.f.Limit, "limit", 100, "how many rows at most")
	cmd.Flags().BoolVar(&all, "all", false, "all rows")
	cmd.Flags().StringVar(&order, "order", "desc", "asc: oldest first; desc: newest first")
	cli.CompleteFlag(cmd, "order", []string{"asc", "desc"})
	return cmd
}

func auditQuery(ctx context.Context, c *cli.Env, url string, f query.Filter, r *rowFlags) error {
	w, err := newRowWriter(c, r)
	if err != nil {
		return err
	}
	return withPostgres(ctx, c, url, func(pool *pgxpool.Pool, _ app.Config) error {
		limit := f.Limit
		if limit > 0 {
			f.Limit++ // one more, to see whether there are more
		}
		more := false
		err := query.NewReader(pool).Search(ctx, f, func(row *query.Row) error {
			if limit > 0 && w.n == limit {
				more = true
				return nil
			}
			return w.row(row)
		})
		if err != nil {
			return logError(err)
		}
		if w.n == 0 && w.table != nil {
			_, _ = fmt.Fprintln(c.Err, "no row matches")
			return nil
		}
		if err := w.flush(); err != nil {
			return err
		}
		if more {
			_, _ = fmt.Fprintf(c.Err, "there are more; use --limit or --all\n")
		}
		return nil
	})
}

func auditTailCommand(c *cli.Env) *cobra.Command {
	var s searchFlags
	var r rowFlags
	cmd := &cobra.Command{
		Use: "tail", Short: "Follow the audit log",
		Long: `Shows the last rows of the audit log that match the filters, then each new one as it
is recorded, until interrupted. No row is missed or shown twice, even if Postgres
restarts. Rows come as they are recorded: rows of different stages may be out of
order by as much as one stage lags behind another.`,
		Example: `  batchyard audit tail
  batchyard audit tail --action 'device.*' --action 'breaker.*'
  batchyard audit tail --tenant acme --outcome failed --json | jq .`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := s.search(c.Now())
			if err == nil && f.Limit < 0 {
				err = cli.UsageError("--lines must not be negative")
			}
			if err == nil && !f.Until.IsZero() && !f.Until.After(c.Now()) {
				err = cli.UsageError("--until %s is in the past: nothing new will come; use `batchyard audit query`", f.Until.UTC().Format(time.RFC3339))
			}
			if err != nil {
				return err
			}
			return auditTail(cmd.Context(), c, s.postgres, f, &r)
		},
	}
	s.flags(c, cmd)
	r.flags(c, cmd)
	cmd.Flags().IntVarP(&s.f.Limit, "lines", "n", 10, "how many existing rows to show first")
	return cmd
}

func auditTail(ctx context.Context, c *cli.Env, url string, f query.Filter, r *rowFlags) error {
	r.live = true
	w, err := newRowWriter(c, r)
	if err != nil {
		return err
	}
	return withPostgres(ctx, c, url, func(pool *pgxpool.Pool, _ app.Config) error {
		away := false
		return logError(query.NewReader(pool).Follow(ctx, f, query.Handler{
			Started: func() { _ = w.flush() }, // the first row reports an error
			Row: func(row *query.Row) error {
				away = false
				return w.row(row)
			},
			Missing: func(chain string, rows int64) {
				_, _ = fmt.Fprintf(c.Err, "batchyard: missing since: %s of chain %s; run `batchyard audit verify`\n", cli.Counted(rows, "row"), cli.Plain(chain))
			},
			Unavailable: func(err error, _ time.Time) {
				if !away {
					_, _ = fmt.Fprintf(c.Err, "batchyard: Postgres does not answer; waiting until it does: %s\n", cli.Plain(err.Error()))
				}
				away = true
			},
		}))
	})
}
