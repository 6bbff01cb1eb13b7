package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit/verify"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// verifyFlags are the flags of audit verify.
type verifyFlags struct {
	checkpointFlags
	postgres string
	since    string
	segments int
	rows     int
	settled  bool
	logOnly  bool
	allow    []string
}

func auditVerifyCommand(c *cli.Env) *cobra.Command {
	var f verifyFlags
	var kinds strings.Builder
	for _, k := range verify.GapKinds {
		fmt.Fprintf(&kinds, "  %-12s %s\n", k.Kind, k.Meaning)
	}
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that nothing in the audit log was changed, removed, moved or added",
		Long: `Reads the audit log in one snapshot, recomputes the hash of every row, follows the
chain of each partition from its beginning to its end, and compares the chains with
the signed checkpoints, which shows even that a whole chain was rebuilt. It names
the first bad row of each chain and why: changed, missing, moved, inserted, or
rewritten. Then it compares results, outputs, states, callbacks, jobs and rollups
with the log, and views and functions with the migrations. It can run at any time
and blocks nothing.

Checkpoints come from audit.checkpoint_dir, from the topic checkpoints unless
--no-kafka, and from copies elsewhere that --checkpoints names. They count if a
trusted key signed them: signing.pub in audit.checkpoint_dir, or the keys of
--public-key. The witnesses of audit.witnesses are asked what they have cosigned;
--witness names the keys of others.

The result says up to when the log is proven against someone with the database, with
the checkpoint directory too, and with Kafka too; and what is not proven:

` + kinds.String() + `
--allow-unproven names kinds that do not count. docs/audit.md explains them.

Exit codes: 0 all is well; 1 something is wrong with the log; 2 it could not be
read; 3 a service cannot be reached; 4 nothing is known to be wrong, but not
everything is proven.`,
		Example: `  batchyard audit verify
  batchyard audit verify --since 7d
  batchyard audit verify --checkpoints /mnt/worm/checkpoints.jsonl --public-key /mnt/worm/signing.pub --no-kafka
  batchyard audit verify --allow-unproven tail,witness
  batchyard audit verify --json | jq -c '.findings[], .unproven[]'`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return auditVerify(cmd.Context(), c, &f) },
	}
	c.ConfigFlag(cmd)
	c.JSONFlag(cmd)
	postgresFlag(c, cmd, &f.postgres)
	fl := cmd.Flags()
	fl.Var((*givenValue)(&f.since), "since", "only partitions from the day of this `time`: 2h, 7d, 2026-01-31, or 2026-01-31T12:00:00Z")
	f.checkpointFlags.flags(cmd)
	fl.IntVar(&f.segments, "max-segments", 1<<20, "most pieces to keep track of while reading the chains; each takes about 400 bytes of memory")
	fl.IntVar(&f.rows, "max-rows", 100_000_000, "most rows of other tables, of which digests are kept in memory; each takes about 50 bytes")
	fl.BoolVar(&f.settled, "settled", false, "nothing is in flight: a result that differs from its events is wrong even if they are new")
	fl.BoolVar(&f.logOnly, "log-only", false, "verify the log itself, and neither the other tables nor the definitions")
	fl.StringSliceVar(&f.allow, "allow-unproven", nil, "`kinds` of what need not be proven, separated by commas; all: any")
	return cmd
}

// allowed returns the kinds of gaps that do not count.
func (f *verifyFlags) allowed() (kinds []verify.GapKind, err error) {
	var names []string
	for _, k := range verify.GapKinds {
		names = append(names, string(k.Kind))
		if slices.Contains(f.allow, string(k.Kind)) || slices.Contains(f.allow, "all") {
			kinds = append(kinds, k.Kind)
		}
	}
	for _, a := range f.allow {
		if a != "all" && !slices.Contains(names, a) {
			return nil, cli.UsageError("unknown kind %q in --allow-unproven: use all, or any of %s", a, strings.Join(names, ", "))
		}
	}
	return kinds, nil
}

func auditVerify(ctx context.Context, c *cli.Env, f *verifyFlags) error {
	o := verify.Options{MaxSegments: f.segments, MaxRows: f.rows, Settled: f.settled, LogOnly: f.logOnly}
	if f.segments < 1 || f.rows < 1 {
		return cli.UsageError("--max-segments and --max-rows must be 1 or more")
	}
	allowed, err := f.allowed()
	if err != nil {
		return err
	}
	if o.Since, err = parseMoment("since", f.since, c.Now()); err != nil {
		return err
	}
	if o.Since.After(c.Now()) {
		return cli.UsageError("--since %s is in the future: nothing would be verified", f.since)
	}
	var report *verify.Report
	err = withPostgres(ctx, c, f.postgres, func(pool *pgxpool.Pool, cfg app.Config) error {
		// Before the snapshot, which then holds all rows that they speak of.
		notes, err := loadCheckpoints(ctx, cfg, &f.checkpointFlags, &o)
		if err != nil {
			return err
		}
		show := &verifyProgress{c: c}
		report, err = verify.Run(ctx, pool, o, show.set)
		show.end()
		if report != nil {
			report.Notes = append(notes, report.Notes...)
		}
		return logError(err)
	})
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err) // it could not be read, which must not look like a finding
	}
	verdict := report.Verdict(allowed...)
	if c.JSON {
		report.Chains, report.Findings, report.Gaps = cli.List(report.Chains), cli.List(report.Findings), cli.List(report.Gaps)
		err = c.PrintJSON(struct {
			Verdict verify.Verdict `json:"verdict"`
			*verify.Report
			Notes []string `json:"notes"` // an array, even when empty
		}{verdict, report, cli.List(report.Notes)})
	} else {
		err = showVerified(c, report, allowed)
	}
	switch {
	case err != nil:
		return cli.WithCode(cli.ExitFailed, err)
	case verdict == verify.Tampered:
		return cli.WithCode(cli.ExitFailed, fmt.Errorf("the audit log is not as it was recorded: %s", cli.Counted(report.Count, "finding")))
	case verdict == verify.Unproven:
		return cli.WithCode(cli.ExitUnproven, errors.New("nothing is known to be wrong, but not everything is proven; --allow-unproven names what need not be"))
	}
	return nil
}

// verifyProgress shows how far a verification is. The number of rows is unknown until
// the first are read.
type verifyProgress struct {
	c    *cli.Env
	once sync.Once
	p    *cli.Progress
}

func (v *verifyProgress) set(p verify.Progress) {
	v.once.Do(func() { v.p = v.c.ProgressOf("verifying", int(max(p.About, p.Rows)), "row") })
	v.p.Grow(int(p.Rows))
	v.p.Set(int(p.Rows))
}

func (v *verifyProgress) end() {
	if v.p != nil {
		v.p.Finish()
	}
}

// showVerified prints a report as tables and notes.
func showVerified(c *cli.Env, r *verify.Report, allowed []verify.GapKind) error {
	t := cli.NewTable(c.Out, "CHAIN", "ROWS", "VERIFIED", "SIGNED UP TO", "FINDINGS", "FIRST")
	for _, ch := range r.Chains {
		verified, signed, first := "none since", "", ""
		if ch.From > 0 {
			verified = fmt.Sprintf("from %d on", ch.From)
		}
		if ch.Signed > 0 {
			signed = fmt.Sprintf("%d, %s", ch.Signed, cli.Ago(ch.SignedAt, c.Now()))
		}
		if ch.First != nil {
			first = string(ch.First.Reason) + " " + ch.First.Rows()
		}
		t.Row(ch.Topic+"/"+strconv.Itoa(int(ch.Partition)), strconv.FormatInt(ch.Rows, 10), verified, signed, strconv.FormatInt(ch.Findings, 10), first)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	const most = 20
	for i, f := range r.Findings {
		if i == most {
			c.Printf("and %d more; --json lists them\n", r.Count-most)
			break
		}
		c.Printf("\n%s\n", cli.Plain(describeFinding(&f)))
	}
	if len(r.Findings) > 0 {
		c.Printf("\n")
	}
	for _, n := range r.Notes {
		c.Printf("note: %s\n", cli.Plain(n))
	}
	showProofs(c, r)
	verdict := map[verify.Verdict]string{verify.Well: "all is well", verify.Tampered: cli.Counted(r.Count, "finding"), verify.Unproven: "nothing is known to be wrong, but not everything is proven"}[r.Verdict(allowed...)]
	c.Printf("%s in %s, %d dropped by retention, %s, %s: %s\n", cli.Counted(r.Rows, "row"), cli.Counted(len(r.Chains), "chain"), r.Dropped, cli.Counted(r.Checkpoints, "checkpoint"),
		cli.Counted(r.Statements, "statement"), verdict)
	return nil
}

// showProofs prints what is proven against whom, and what is not.
func showProofs(c *cli.Env, r *verify.Report) {
	for _, p := range r.Proofs {
		s := "proven"
		switch {
		case p.Proven && !p.Until.IsZero():
			s += " up to " + p.Until.UTC().Format(time.RFC3339)
		case !p.Proven:
			s = "NOT proven"
		}
		if p.Why != "" {
			s += " (" + p.Why + ")"
		}
		c.Printf("against someone with %s: %s\n", p.Against, cli.Plain(s))
	}
	for _, g := range r.Gaps {
		c.Printf("unproven: %s: %s\n", g.Kind, cli.Plain(g.Detail))
	}
}

// describeFinding puts a finding into a sentence.
func describeFinding(f *verify.Finding) string {
	s := strings.ToUpper(string(f.Reason))
	if f.Topic != "" {
		s += " " + f.Chain()
	}
	if f.To > f.Seq {
		s += " rows " + f.Rows()
	} else if f.Seq != 0 {
		s += " row " + f.Rows()
	}
	if f.Row != nil {
		s += ": " + f.Row.String()
	}
	return s + ": " + f.Detail
}
