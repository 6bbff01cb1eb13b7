package main

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
	"github.com/batchyard/batchyard/cmd/internal/ledger"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
)

func ledgerCommand(c *cli) *cobra.Command {
	return group(&cobra.Command{
		Use: "ledger", Short: "Check that no task was lost or answered twice",
		Example: "  batchyard ledger check",
	}, ledgerCheckCommand(c))
}

func ledgerCheckCommand(c *cli) *cobra.Command {
	var o ledger.Options
	var postgres string
	quiet := false
	var kinds strings.Builder
	for _, k := range ledger.Kinds {
		fmt.Fprintf(&kinds, "  %-20s %s\n", k.Kind, k.Meaning)
	}
	cmd := &cobra.Command{
		Use: "check", Short: "Compare the logs in Kafka with the tables in Postgres",
		Long: `Reads what is in Kafka and in Postgres, and says whether

  accepted = terminal + in flight + dead letters

holds, and whether results, states, callbacks and audit rows are what the logs say.
What is wrong is looked at twice, and named:

` + kinds.String() + `
It may run while Batchyard does: it writes nothing but a temporary file, belongs to
no consumer group, and takes no locks. Memory stays the same however many tasks
there are. It reads all records of the topics, and all rows of tasks and results.

Exit codes: 0 it holds; 1 it does not; 2 wrong usage or configuration; 3 it could
not look.`,
		Example: `  batchyard ledger check
  batchyard ledger check --json | jq .problems
  batchyard ledger check --settled --wait 2m   # after a drain: nothing may be in flight`,
		Args: exactly(), ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Wait < 0:
				return usageError("--wait must not be negative")
			case o.Problems < 1:
				return usageError("--problems must be at least 1")
			}
			// Only an account too large for memory needs it, after minutes of reading.
			if at, err := os.Stat(o.Dir); o.Dir != "" && (err != nil || !at.IsDir()) {
				return usageError("--dir %s is no directory; name one that is there", o.Dir)
			}
			if c.stderrTTY && !quiet {
				o.Progress = func(what string) { _, _ = fmt.Fprintln(c.err, what+" …") }
			}
			return ledgerCheck(cmd.Context(), c, o, postgres)
		},
	}
	c.configFlag(cmd)
	c.jsonFlag(cmd)
	postgresFlag(c, cmd, &postgres)
	cmd.Flags().DurationVar(&o.Wait, "wait", 30*time.Second, "how long to wait for the recorder before each look, if it is behind")
	cmd.Flags().BoolVar(&o.Settled, "settled", false, "also fail while tasks are in flight")
	cmd.Flags().IntVar(&o.Problems, "problems", 100, "how many problems of each kind are named")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "`directory` for the temporary file (default: the system's)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "do not say what is being done")
	_ = cmd.MarkFlagDirname("dir") // completion only
	return cmd
}

func ledgerCheck(ctx context.Context, c *cli, o ledger.Options, postgres string) error {
	return c.withLog(ctx, func(log *stream.Client, cfg app.Config) error {
		if postgres != "" {
			cfg.Postgres.URL = postgres
		}
		pool, err := app.OpenPostgres(ctx, cfg.Postgres)
		if err != nil {
			return serviceError(err)
		}
		defer pool.Close()
		if err := log.CheckTopics(ctx); err != nil {
			return withCode(exitUsage, err)
		}
		if err := migrations.Check(ctx, pool); err != nil {
			return withCode(exitUsage, logError(err))
		}
		o.Retention = cfg.Audit.Retention
		return ledgerTell(ctx, c, log, pool, o)
	})
}

func ledgerTell(ctx context.Context, c *cli, log *stream.Client, pool *pgxpool.Pool, o ledger.Options) error {
	r, err := ledger.Check(ctx, log, pool, o)
	if err != nil {
		return withCode(exitUnreachable, logError(fmt.Errorf("looking at the account: %w", err)))
	}
	if c.json {
		err = c.printJSON(r)
	} else {
		err = showLedger(c, r)
	}
	if err == nil && !r.Holds {
		err = errors.New("the account does not hold")
	}
	return withCode(exitFailed, err)
}

// showLedger writes a report for people.
func showLedger(c *cli, r *ledger.Report) error {
	t := newTable(c.out)
	count := func(name string, n int64) { t.row(name, strconv.FormatInt(n, 10)) }
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
	t.row("events recorded", strconv.FormatInt(r.Events.Expected, 10), "in "+counted(r.Events.Records, "record"))
	t.row("  audit rows", strconv.FormatInt(r.Events.Rows, 10), fmt.Sprintf("and %s in dead letters, %s not taken", counted(r.Events.Dead, "event"), counted(r.Events.Duplicates, "result")))
	if err := t.flush(); err != nil {
		return err
	}
	c.printf("\n")
	t = newTable(c.out, "TOPIC", "RECORDS", "NOT FINISHED", "WHOLE SINCE")
	for _, topic := range r.Topics {
		since := "the beginning"
		if topic.Since != nil {
			since = topic.Since.Format(time.RFC3339)
		}
		t.row(topic.Topic, strconv.FormatInt(topic.Records, 10), strconv.FormatInt(topic.Lag, 10), since)
	}
	if err := t.flush(); err != nil {
		return err
	}
	c.printf("\n")
	if len(r.Problems) > 0 {
		if err := showProblems(c, r); err != nil {
			return err
		}
	}
	word := "holds"
	if !r.Holds {
		word = "does NOT hold"
	}
	c.printf("The account of %s %s (looked %s, %.1f s).\n", r.At.Format(time.RFC3339), word, times(r.Looks), r.Seconds)
	return nil
}

func showProblems(c *cli, r *ledger.Report) error {
	t := newTable(c.out, "PROBLEM", "TENANT", "TASK", "AT", "WHAT")
	for _, p := range r.Problems {
		t.row(string(p.Kind), short(p.Tenant, 40), p.TaskID, p.At, p.What)
	}
	if err := t.flush(); err != nil {
		return err
	}
	c.printf("\n")
	for _, k := range ledger.Kinds {
		if n := r.Counts[k.Kind]; n > 0 {
			c.printf("%d × %s: %s\n", n, k.Kind, k.Meaning)
		}
	}
	c.printf("\n")
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}
