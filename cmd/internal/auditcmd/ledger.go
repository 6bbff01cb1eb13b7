package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/ledger"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
)

// LedgerCommand returns ledger.
func LedgerCommand(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "ledger", Short: "Check that no task was lost or answered twice",
		Example: "  batchyard ledger check",
	}, ledgerCheckCommand(c))
}

func ledgerCheckCommand(c *cli.Env) *cobra.Command {
	var o ledger.Options
	var postgres string
	quiet := false
	var kinds strings.Builder
	for _, k := range ledger.Kinds {
		fmt.Fprintf(&kinds, "  %-20s %s\n", k.Kind, k.Meaning)
	}
	cmd := &cobra.Command{
		Use: "check", Short: "Compare the logs in Kafka with the tables in Postgres",
		Long: `Reads Kafka and Postgres, and says whether

  accepted = terminal + in flight + dead letters

holds, and whether results, states, callbacks and audit rows match the topics.
Problems are checked twice, then listed:

` + kinds.String() + `
It can run beside Batchyard: it writes only a temporary file, joins no consumer
group, and takes no locks. It reads all records of the topics and all rows of tasks
and results; memory does not grow with the number of tasks.

Exit codes: 0 it holds; 1 it does not; 2 wrong usage or configuration; 3 Kafka or
Postgres could not be read.`,
		Example: `  batchyard ledger check
  batchyard ledger check --json | jq .problems
  batchyard ledger check --settled --wait 2m   # after a drain: nothing may be in flight`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Wait < 0:
				return cli.UsageError("--wait must not be negative")
			case o.Problems < 1:
				return cli.UsageError("--problems must be at least 1")
			}
			// Only an account too large for memory needs it, after minutes of reading.
			if at, err := os.Stat(o.Dir); o.Dir != "" && (err != nil || !at.IsDir()) {
				return cli.UsageError("--dir %s: not a directory; use one that exists", o.Dir)
			}
			if c.StderrTTY && !quiet {
				o.Progress = func(what string) { _, _ = fmt.Fprintln(c.Err, what+" …") }
			}
			return ledgerCheck(cmd.Context(), c, o, postgres)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	postgresFlag(c, cmd, &postgres)
	cmd.Flags().DurationVar(&o.Wait, "wait", 30*time.Second, "how long to wait for a recorder that is behind, before each check")
	cmd.Flags().BoolVar(&o.Settled, "settled", false, "also fail while tasks are in flight")
	cmd.Flags().IntVar(&o.Problems, "problems", 100, "how many problems of each kind to list")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "`directory` for the temporary file (default: the system's)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not show progress")
	_ = cmd.MarkFlagDirname("dir") // completion only
	return cmd
}

func ledgerCheck(ctx context.Context, c *cli.Env, o ledger.Options, postgres string) error {
	return c.WithLog(ctx, func(log *stream.Client, cfg app.Config) error {
		if postgres != "" {
			cfg.Postgres.URL = postgres
		}
		pool, err := app.OpenPostgres(ctx, cfg.Postgres)
		if err != nil {
			return cli.ServiceError(err)
		}
		defer pool.Close()
		if err := log.CheckTopics(ctx); err != nil {
			return cli.WithCode(cli.ExitUsage, err)
		}
		if err := migrations.Check(ctx, pool); err != nil {
			return cli.WithCode(cli.ExitUsage, logError(err))
		}
		o.Retention = cfg.Audit.Retention
		return ledgerTell(ctx, c, log, pool, o)
	})
}

func ledgerTell(ctx context.Context, c *cli.Env, log *stream.Client, pool *pgxpool.Pool, o ledger.Options) error {
	r, err := ledger.Check(ctx, log, pool, o)
	if err != nil {
		return cli.WithCode(cli.ExitUnreachable, logError(fmt.Errorf("checking the account: %w", err)))
	}
	if c.JSON {
		err = c.PrintJSON(r)
	} else {
		err = showLedger(c, r)
	}
	if err == nil && !r.Holds {
		err = errors.New("the account does not hold")
	}
	return cli.WithCode(cli.ExitFailed, err)
}

// showLedger prints a report as tables.
func showLedger(c *cli.Env, r *ledger.Report) error {
	t := cli.NewTable(c.Out)
	count := func(name string, n int64) { t.Row(name, strconv.FormatInt(n, 10)) }
	count("accepted", r.Accepted)
	count("= terminal", r.Terminal)
	parts := func(of map[string]int64) {
		for _, name := range slices.Sorted(maps.Keys(of)) {
			count("    "+name, of[name])
		}
	}
	parts(r.ByState)
	count("+ in flight", r.InFlight)
	parts(r.Where)
	count("+ dead letters", r.Dead)
	count("+ missing", r.Missing)
	if r.Older > 0 {
		count("older results", r.Older)
	}
	t.Row("events recorded", strconv.FormatInt(r.Events.Expected, 10), "in "+cli.Counted(r.Events.Records, "record"))
	t.Row("  audit rows", strconv.FormatInt(r.Events.Rows, 10), fmt.Sprintf("and %s in dead letters, %s not taken", cli.Counted(r.Events.Dead, "event"), cli.Counted(r.Events.Duplicates, "result")))
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	t = cli.NewTable(c.Out, "TOPIC", "RECORDS", "NOT FINISHED", "WHOLE SINCE")
	for _, topic := range r.Topics {
		since := "the beginning"
		if topic.Since != nil {
			since = topic.Since.Format(time.RFC3339)
		}
		t.Row(topic.Topic, strconv.FormatInt(topic.Records, 10), strconv.FormatInt(topic.Lag, 10), since)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	if len(r.Problems) > 0 {
		if err := showProblems(c, r); err != nil {
			return err
		}
	}
	word := "holds"
	if !r.Holds {
		word = "does NOT hold"
	}
	c.Printf("The account of %s %s (looked %s, %.1f s).\n", r.At.Format(time.RFC3339), word, times(r.Looks), r.Seconds)
	return nil
}

func showProblems(c *cli.Env, r *ledger.Report) error {
	t := cli.NewTable(c.Out, "PROBLEM", "TENANT", "TASK", "AT", "WHAT")
	for _, p := range r.Problems {
		t.Row(string(p.Kind), cli.Short(p.Tenant, 40), p.TaskID, p.At, p.What)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	for _, k := range ledger.Kinds {
		if n := r.Counts[k.Kind]; n > 0 {
			c.Printf("%d × %s: %s\n", n, k.Kind, k.Meaning)
		}
	}
	c.Printf("\n")
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}
