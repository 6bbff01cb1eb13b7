package auditcmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/prove"
	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// proveFlags are the flags of audit prove and jobs prove.
type proveFlags struct {
	checkpointFlags
	postgres string
	tenant   string
	output   string
}

func (f *proveFlags) flags(c *cli.Env, cmd *cobra.Command) {
	c.ConfigFlag(cmd)
	postgresFlag(c, cmd, &f.postgres)
	f.checkpointFlags.flags(cmd)
	cmd.Flags().StringVar(&f.tenant, "tenant", task.DefaultTenant, "`tenant` that it belongs to")
	cmd.Flags().StringVarP(&f.output, "output", "o", "-", "`file` for the proof; \"-\" is standard output")
}

func auditProveCommand(c *cli.Env) *cobra.Command {
	var f proveFlags
	cmd := &cobra.Command{
		Use: "prove TASK", Short: "Write a file that proves what the audit log has about a task",
		Long: `Writes a file with every row about a task, the path from each row to a signed
checkpoint, and the checkpoint with the signatures of witnesses. Anyone can check it
without the database: with ` + "`batchyard audit check-proof`" + `, or with the short program in
docs/audit.md.

The proof leads to the newest cosigned checkpoint that has all rows, else to the newest
that has them. Rows of the last audit.checkpoint_interval cannot be proven yet.`,
		Example: `  batchyard audit prove my-task-1 -o my-task-1.proof
  batchyard audit check-proof my-task-1.proof --public-key signing.pub`,
		Args: cli.Exactly("TASK"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return proveSubject(cmd.Context(), c, &f, audit.ProofSubject{Tenant: f.tenant, Task: args[0]})
		},
	}
	f.flags(c, cmd)
	return cmd
}

// ProveJobCommand returns jobs prove.
func ProveJobCommand(c *cli.Env) *cobra.Command {
	var f proveFlags
	cmd := &cobra.Command{
		Use: "prove JOB", Short: "Write a file that proves the output of a job",
		Long: `Writes a file that proves what the audit log has about the tasks of a job: how many
were announced, how each ended, the SHA-256 of what devices answered, and each result
whose digest is in a row about the tenant. With it,
` + "`batchyard audit check-proof --output`" + ` compares the job's output line by line, and says
whether a line is missing. It reads Postgres itself, as batchyard audit does.`,
		Example: `  batchyard jobs results nightly-2026-11-21 -o answers.jsonl
  batchyard jobs prove nightly-2026-11-21 -o answers.proof
  batchyard audit check-proof answers.proof --output answers.jsonl --public-key signing.pub`,
		Args: cli.Exactly("JOB"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return proveSubject(cmd.Context(), c, &f, audit.ProofSubject{Tenant: f.tenant, Job: args[0]})
		},
	}
	f.flags(c, cmd)
	return cmd
}

func proveSubject(ctx context.Context, c *cli.Env, f *proveFlags, of audit.ProofSubject) error {
	return withPostgres(ctx, c, f.postgres, func(pool *pgxpool.Pool, cfg app.Config) error {
		points, err := candidates(ctx, cfg, &f.checkpointFlags)
		if err != nil {
			return err
		}
		r := prove.Request{ProofSubject: of, Candidates: points}
		if f.output == "-" {
			_, _, err := prove.Write(ctx, pool, r, c.Out)
			return proveError(of, err)
		}
		// The file appears once it is complete. If the process dies before, it leaves a .part file.
		part := f.output + ".part"
		file, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return cli.WithCode(cli.ExitUsage, fmt.Errorf("writing the proof: %w", err))
		}
		out := bufio.NewWriterSize(file, 256<<10)
		to, rows, err := prove.Write(ctx, pool, r, out)
		err = errors.Join(proveError(of, err), out.Flush(), file.Sync(), file.Close())
		if err == nil {
			err = os.Rename(part, f.output)
		}
		if err != nil {
			_ = os.Remove(part)
			return err
		}
		c.Printf("%s: %s, proven by checkpoint %d of %s\n", f.output, cli.Counted(rows, "row"), to.Number, to.Time.UTC().Format(time.RFC3339))
		return nil
	})
}

func proveError(of audit.ProofSubject, err error) error {
	switch {
	case errors.Is(err, prove.ErrNoRows):
		return fmt.Errorf("proving %s%s of tenant %s: %w; --tenant names another", of.Task, of.Job, of.Tenant, err)
	case err != nil:
		return fmt.Errorf("proving %s%s: %w", of.Task, of.Job, logError(err))
	}
	return nil
}

// checkFlags are the flags of audit check-proof.
type checkFlags struct {
	keys      []string
	witnesses []string
	quorum    int
	output    string
}

func auditCheckProofCommand(c *cli.Env) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use: "check-proof FILE", Short: "Check a proof of audit prove or jobs prove, without the database",
		Long: `Checks that every row in a proof is in the audit log whose checkpoint a trusted key
signed, and prints what the rows say. It needs the file and the public key only. With
--witness and --quorum, so many of these witnesses must have cosigned the checkpoint.

With --output, it compares the output of a job with the proof. Every member of a line is
compared with the result of its task, if the proof has that; else only how the task ended,
and its answer, and the command says what is not proven. The order of lines never is.

Exit codes: 0 it is proven; 1 it is not; 2 wrong usage; 4 nothing is known to be wrong
with the output, but the proof does not show all of it, or not that it is complete.`,
		Example: `  batchyard audit check-proof my-task-1.proof --public-key signing.pub
  batchyard audit check-proof answers.proof --output answers.jsonl --public-key signing.pub --witness "$KEY" --quorum 1`,
		Args: cli.Exactly("FILE"), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(_ *cobra.Command, args []string) error { return checkProof(c, &f, args[0]) },
	}
	c.JSONFlag(cmd)
	fl := cmd.Flags()
	fl.StringArrayVar(&f.keys, "public-key", nil, "PEM `file` of a recorder's key to trust; repeatable")
	fl.StringArrayVar(&f.witnesses, "witness", nil, "`key` of a witness to trust, as text; repeatable")
	fl.IntVar(&f.quorum, "quorum", 0, "how many of the witnesses must have cosigned")
	fl.StringVar(&f.output, "output", "", "output `file` of the job")
	return cmd
}

// shownRow is what check-proof prints of a row.
type shownRow struct {
	Chain  string    `json:"chain"`
	Row    int64     `json:"row"`
	Time   time.Time `json:"time"`
	Action string    `json:"action"`
	Actor  string    `json:"actor_id"`
	Task   string    `json:"task_id,omitempty"`
	Device string    `json:"device_id,omitempty"`
	Output string    `json:"output_sha256,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

func checkProof(c *cli.Env, f *checkFlags, path string) error {
	if len(f.keys) == 0 {
		return cli.UsageError("a proof shows nothing without a key to trust: name the recorder's signing.pub with --public-key")
	}
	keys, err := publicKeys(f.keys, nil)
	if err != nil {
		return err
	}
	witnesses, _, err := witnessKeys(nil, f.witnesses)
	if err != nil {
		return err
	}
	if f.quorum < 0 || f.quorum > len(witnesses) {
		return cli.UsageError("--quorum %d: it must be 0 to the number of --witness, %d", f.quorum, len(witnesses))
	}
	in, closeIn, err := open(c, path)
	if err != nil {
		return err
	}
	defer closeIn()
	out := audit.NewOutputCheck(jobs.OpenAILine)
	var shown []shownRow
	p, err := audit.CheckProof(in, audit.Trust{Keys: keys, Witnesses: witnesses, Quorum: f.quorum}, func(r *audit.ProvenColumns) error {
		if f.output == "" {
			shown = append(shown, show(r))
			return nil
		}
		return out.Take(r)
	})
	if err != nil {
		return cli.WithCode(cli.ExitFailed, fmt.Errorf("%s proves nothing: %w", path, err))
	}
	if f.output != "" {
		return checkOutput(c, f.output, p, out)
	}
	if c.JSON {
		return c.PrintJSON(struct {
			Rows []shownRow `json:"rows"`
			provenBy
		}{cli.List(shown), provenOf(p)})
	}
	t := cli.NewTable(c.Out, "TIME", "ACTION", "ACTOR", "TASK", "DEVICE", "CHAIN", "ROW")
	for _, r := range shown {
		t.Row(r.Time.Format(time.RFC3339Nano), r.Action, r.Actor, r.Task, r.Device, r.Chain, fmt.Sprint(r.Row))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	showProven(c, p)
	return nil
}

func open(c *cli.Env, path string) (io.Reader, func(), error) {
	if path == "-" {
		return c.In, func() {}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, cli.WithCode(cli.ExitUsage, err)
	}
	return f, func() { _ = f.Close() }, nil
}

func show(r *audit.ProvenColumns) shownRow {
	s := shownRow{Chain: r.Chain.String(), Row: r.Seq, Time: r.Time(audit.ColTime), Action: r.Text(audit.ColAction), Actor: r.Text(audit.ColActor), Task: r.Text(audit.ColTask),
		Device: r.Text(audit.ColDevice), Detail: r.Text(audit.ColDetail)}
	if sum := r.Fields[audit.ColOutputSHA256]; len(sum) > 0 {
		s.Output = fmt.Sprintf("%x", sum)
	}
	return s
}

// provenBy is who signed a proof.
type provenBy struct {
	Origin    string    `json:"origin"`
	Number    int64     `json:"checkpoint"`
	Time      time.Time `json:"signed_at"`
	Signer    string    `json:"signer"`
	Witnesses []string  `json:"witnesses"`
}

func provenOf(p *audit.Proven) provenBy {
	return provenBy{p.Checkpoint.Origin, p.Checkpoint.Number, p.Checkpoint.Time, p.Signer, cli.List(p.Witnesses)}
}

func showProven(c *cli.Env, p *audit.Proven) {
	c.Printf("%s in the log %s, proven by checkpoint %d of %s, signed by %s\n", cli.Counted(p.Rows, "row"), cli.Plain(p.Checkpoint.Origin), p.Checkpoint.Number,
		p.Checkpoint.Time.UTC().Format(time.RFC3339), p.Signer)
	for i, w := range p.Witnesses {
		c.Printf("cosigned by %s at %s\n", cli.Plain(w), p.Cosigned[i].Format(time.RFC3339))
	}
}

func checkOutput(c *cli.Env, path string, p *audit.Proven, o *audit.OutputCheck) error {
	in, closeIn, err := open(c, path)
	if err != nil {
		return err
	}
	defer closeIn()
	if err := o.Compare(in); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	complete := o.Expected > 0 && int64(o.Ended) >= o.Expected
	if c.JSON {
		err := c.PrintJSON(struct {
			Proven    int      `json:"proven"`
			Others    int      `json:"proven_without_answer"`
			Answers   int      `json:"answer_only"`
			Outcomes  int      `json:"outcome_only"`
			Expected  int64    `json:"announced"`
			Ended     int      `json:"ended"`
			Complete  bool     `json:"complete"`
			NotProven []string `json:"not_proven"`
			Unproven  []string `json:"unproven_lines"`
			Problems  []string `json:"problems"`
			provenBy
		}{o.Proven, o.Others, o.Answers, o.Outcomes, o.Expected, o.Ended, complete, notProven(o), cli.List(o.Unproven.First), cli.List(o.Problems.First), provenOf(p)})
		if err != nil {
			return err
		}
	} else {
		for _, s := range slices.Concat(o.Problems.First, o.Unproven.First) {
			c.Printf("%s\n", cli.Plain(s))
		}
		c.Printf("%s proven with all members of their lines, and %s of tasks that did not succeed; the log has %d of %d announced tasks as ended\n",
			cli.Counted(o.Proven, "answer"), cli.Counted(o.Others, "line"), o.Ended, o.Expected)
		for _, s := range notProven(o) {
			c.Printf("not proven: %s\n", s)
		}
		showProven(c, p)
	}
	switch {
	case o.Problems.Count > 0:
		return cli.WithCode(cli.ExitFailed, fmt.Errorf("%s is not the output that the log has: %s", path, cli.Counted(o.Problems.Count, "problem")))
	case o.Answers+o.Outcomes+o.Unproven.Count > 0:
		return cli.WithCode(cli.ExitUnproven, errors.New("nothing is known to be wrong with the output, but the proof does not show all of it"))
	case !complete:
		return cli.WithCode(cli.ExitUnproven, errors.New("nothing is wrong with the output, but the proof does not show that it is complete"))
	}
	return nil
}

// notProven says what the check of an output does not show.
func notProven(o *audit.OutputCheck) []string {
	all := []string{"the order of lines"}
	if o.Answers > 0 {
		all = append(all, fmt.Sprintf("custom_id, request_id, status_code and all else but task, success and answer in %s", cli.Counted(o.Answers, "line")))
	}
	if o.Outcomes > 0 {
		all = append(all, fmt.Sprintf("custom_id, the message and all else but task, outcome and class of error in %s of tasks that did not succeed", cli.Counted(o.Outcomes, "line")))
	}
	if o.Unproven.Count > 0 {
		all = append(all, fmt.Sprintf("anything in %s", cli.Counted(o.Unproven.Count, "other line")))
	}
	return all
}
