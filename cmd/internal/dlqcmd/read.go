package dlqcmd

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
)

func listCommand(c *cli.Env) *cobra.Command {
	var f letterFilter
	var limit int
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List dead letters, oldest first",
		Long:    "Lists the newest dead letters, oldest first; with --all, every one, by partition.",
		Example: "  batchyard dlq list --since 1h\n  batchyard dlq list --all --json | jq -r .reason | sort | uniq -c",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && cmd.Flags().Changed("limit") {
				return cli.ErrLimitAll
			}
			if all {
				limit = 0
			} else if limit < 1 || limit > 100_000 {
				return cli.UsageError("--limit must be 1 to 100000; --all lists everything")
			}
			if err := f.check(); err != nil {
				return err
			}
			return listLetters(cmd.Context(), c, &f, limit)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	f.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "how many of the newest")
	cmd.Flags().BoolVar(&all, "all", false, "all dead letters")
	return cmd
}

// listLetters prints the newest dead letters that f takes, at most limit of them; 0 means all.
func listLetters(ctx context.Context, c *cli.Env, f *letterFilter, limit int) error {
	return c.WithLog(ctx, func(log *stream.Client, _ app.Config) error {
		now := c.Now()
		t := cli.NewTable(c.Out, "AT", "FROM", "STAGE", "REASON", "DIED", "SIZE", "ERROR")
		n := 0
		show := func(l Letter) error {
			if n++; c.JSON {
				return c.PrintJSON(l)
			}
			t.Row(l.At, l.From, l.Stage, l.Reason, cli.Ago(l.Time, now), cli.Size(int64(l.Size)), cli.Short(l.Error, 80))
			if n%cli.FlushEvery == 0 {
				return t.Flush()
			}
			return nil
		}
		var newest []Letter // without values, so of bounded size
		total := 0
		older := func(a, b Letter) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.At, b.At)) }
		err := log.Scan(ctx, stream.DLQ, func(r *stream.Record) error {
			if !f.takes(r, now) {
				return nil
			}
			total++
			if limit == 0 {
				return show(letterOf(r))
			}
			if newest = append(newest, letterOf(r)); len(newest) >= 2*limit {
				slices.SortFunc(newest, older)
				newest = slices.Delete(newest, 0, len(newest)-limit)
			}
			return nil
		})
		if err != nil {
			return readError(err)
		}
		slices.SortFunc(newest, older)
		for _, l := range newest[max(0, len(newest)-limit):] {
			if err := show(l); err != nil {
				return err
			}
		}
		if c.JSON {
			return nil
		}
		if total == 0 {
			_, _ = fmt.Fprintln(c.Err, "no dead letter matches")
			return nil
		}
		if err := t.Flush(); err != nil {
			return err
		}
		if n < total {
			_, _ = fmt.Fprintf(c.Err, "%d of %d; --all lists the others, too\n", n, total)
		}
		return nil
	})
}

// readError says what failed.
func readError(err error) error { return fmt.Errorf("reading the dead letters: %w", err) }

func showCommand(c *cli.Env) *cobra.Command {
	raw := false
	cmd := &cobra.Command{
		Use: "show PARTITION@OFFSET", Short: "Show a dead letter: its headers and its bytes",
		Long: `Shows the headers and the bytes of a dead letter, as a hex dump unless they are
text. The bytes are what a client sent, and may contain a prompt.`,
		Example: "  batchyard dlq show 3@42\n  batchyard dlq show 3@42 --raw > record.bin",
		Args:    cli.Exactly("PARTITION@OFFSET"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := parsePlace(args[0])
			if err != nil {
				return err
			}
			if raw && c.JSON {
				return cli.UsageError("--raw and --json cannot be combined")
			}
			return find(cmd.Context(), c, at, raw)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "write only the bytes, unchanged")
	return cmd
}

// find shows the dead letter at a position.
func find(ctx context.Context, c *cli.Env, at place, raw bool) error {
	return c.WithLog(ctx, func(log *stream.Client, _ app.Config) error {
		var found *stream.Record
		err := log.Scan(ctx, stream.DLQ, func(r *stream.Record) error {
			if placeOf(r) == at {
				found = r
				return errEnough
			}
			return nil
		})
		switch {
		case ignoreEnough(err) != nil:
			return readError(err)
		case found == nil:
			return cli.WithCode(cli.ExitFailed, fmt.Errorf("there is no dead letter at %s; `batchyard dlq list` shows all", at))
		case c.JSON:
			return c.PrintJSON(wholeLetterOf(found))
		case raw:
			if _, err := c.Out.Write(found.Value); err != nil {
				return fmt.Errorf("writing the dead letter: %w", err)
			}
			return nil
		}
		return describe(c, found)
	})
}

func describe(c *cli.Env, r *stream.Record) error {
	t := cli.NewTable(c.Out)
	t.Row("at", placeOf(r).String())
	t.Row("from", origin(r))
	t.Row("died", cli.Ago(diedAt(r), c.Now()))
	t.Row("key", string(r.Key))
	for _, h := range r.Headers {
		t.Row("header "+h.Key, string(h.Value))
	}
	t.Row("size", cli.Size(int64(len(r.Value))))
	if err := t.Flush(); err != nil {
		return err
	}
	if cli.IsText(r.Value) {
		c.Printf("\n%s\n", r.Value)
		return nil
	}
	c.Printf("\n%s", hex.Dump(r.Value))
	return nil
}
