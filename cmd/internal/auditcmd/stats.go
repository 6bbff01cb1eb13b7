package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit/query"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
)

func auditStatsCommand(c *cli.Env) *cobra.Command {
	var postgres string
	var days int
	cmd := &cobra.Command{
		Use: "stats", Short: "Show how large the audit log is, what is in it, and how far the recorder is",
		Long: `Shows the partitions and their sizes, what was done in the last days, the chains,
and how far behind the recorder is. Rows are estimated: counting them would read
them all. The lag also needs Kafka; without it, the rest is shown.

Exit code 1 while the default partition holds rows: clocks are wrong, or partitions
could not be made.`,
		Example: "  batchyard audit stats\n  batchyard audit stats --json | jq '.chains[] | {topic, partition, lag}'",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 0 {
				return cli.UsageError("--days must not be negative")
			}
			return auditStats(cmd.Context(), c, postgres, days)
		},
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	postgresFlag(c, cmd, &postgres)
	cmd.Flags().IntVar(&days, "days", 7, "how many days to estimate actions for")
	return cmd
}

func auditStats(ctx context.Context, c *cli.Env, url string, days int) error {
	return withPostgres(ctx, c, url, func(pool *pgxpool.Pool, cfg app.Config) error {
		s, err := query.NewReader(pool).Stats(ctx, days)
		if err != nil {
			return logError(err)
		}
		kafka := addLag(ctx, cfg, s)
		if c.JSON {
			s.Partitions, s.Actions, s.Chains = cli.List(s.Partitions), cli.List(s.Actions), cli.List(s.Chains)
			err = c.PrintJSON(s)
		} else {
			err = showStats(c, s, kafka)
		}
		if err == nil && s.InDefault > 0 {
			err = fmt.Errorf("the default partition holds %s: clocks are wrong, or partitions could not be made", cli.Counted(s.InDefault, "row"))
		}
		return cli.WithCode(cli.ExitFailed, err)
	})
}

// addLag asks Kafka where the topics end. Auditors may have no access to Kafka: the
// error then says why there is no lag.
func addLag(ctx context.Context, cfg app.Config, s *query.Stats) error {
	log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := log.CheckTopics(ctx); err != nil {
		return err
	}
	for _, topic := range []string{stream.Events, stream.Results} {
		ends, err := log.Offsets(ctx, "", topic)
		if err != nil {
			return err
		}
		for _, e := range ends {
			i := slices.IndexFunc(s.Chains, func(c query.ChainRow) bool { return c.Topic == topic && c.Partition == e.Partition })
			if i < 0 {
				if e.End == 0 {
					continue
				}
				s.Chains = append(s.Chains, query.ChainRow{Topic: topic, Partition: e.Partition, Next: -1})
				i = len(s.Chains) - 1
			}
			lag := max(0, e.End-max(s.Chains[i].Next, e.First))
			s.Chains[i].End, s.Chains[i].Lag = &e.End, &lag
		}
	}
	return nil
}

func showStats(c *cli.Env, s *query.Stats, kafka error) error {
	t := cli.NewTable(c.Out)
	t.Row("rows", "about "+strconv.FormatInt(s.Rows, 10), cli.Size(s.Bytes)+" with indexes")
	if s.Oldest != nil && s.Newest != nil {
		t.Row("oldest", s.Oldest.Format(time.RFC3339), cli.Ago(*s.Oldest, c.Now()))
		t.Row("newest", s.Newest.Format(time.RFC3339), cli.Ago(*s.Newest, c.Now()))
	}
	t.Row("in no day's partition", strconv.FormatInt(s.InDefault, 10), "rows; there should be 0")
	for _, d := range s.Dropped {
		t.Row("removed by retention", d.Day, cli.Counted(d.Rows, "row"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	t = cli.NewTable(c.Out, "PARTITION", "DAY", "ROWS (ESTIMATE)", "SIZE")
	for _, p := range s.Partitions {
		rows := strconv.FormatInt(p.Rows, 10)
		if p.Rows < 0 {
			rows = "unknown yet"
		}
		t.Row(p.Name, p.Day, rows, cli.Size(p.Bytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	t = cli.NewTable(c.Out, "DAY", "ACTION", "OUTCOME", "ROWS (ESTIMATE)")
	for _, a := range s.Actions {
		t.Row(a.Day, a.Action, a.Outcome, strconv.FormatInt(a.Rows, 10))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c.Printf("\n")
	t = cli.NewTable(c.Out, "CHAIN", "ROWS", "RECORDED TO", "TOPIC ENDS", "LAG", "LAST WRITTEN", "OWNER")
	for _, ch := range s.Chains {
		end, lag := "", ""
		if ch.End != nil {
			end, lag = strconv.FormatInt(*ch.End, 10), strconv.FormatInt(*ch.Lag, 10)
		}
		t.Row(fmt.Sprintf("%s/%d", ch.Topic, ch.Partition), strconv.FormatInt(ch.Rows, 10), strconv.FormatInt(ch.Next, 10), end, lag, cli.Ago(ch.UpdatedAt, c.Now()), ch.Owner)
	}
	if kafka != nil && !errors.Is(kafka, context.Canceled) {
		_, _ = fmt.Fprintf(c.Err, "the lag is unknown: %s\n", cli.Plain(kafka.Error()))
	}
	return t.Flush()
}
