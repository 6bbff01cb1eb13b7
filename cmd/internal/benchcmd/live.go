package benchcmd

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	livebench "github.com/batchyard/batchyard/bench/live"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/router/policy"
)

// liveFlags are the flags of `bench route --live` that the simulation does not have.
type liveFlags struct {
	on     bool
	rounds int
	rate   float64
}

// Defaults of --live for flags that it shares with the simulation. Its time is real,
// so they are smaller.
const (
	liveTasks    = 1000
	liveWarmup   = 5 * time.Second
	liveDuration = 12 * time.Second
)

const liveHelp = `

With --live nothing is simulated but the devices' speed: the program itself runs
as a process, with all stages, and sends real requests to mixed12's devices; the
first policy of --policy (round_robin) and the others (expected_finish) take
turns. Each turn starts empty, measures response times under open
arrivals of --rate for --duration (12s, after a --warmup of 5s), then the
throughput of a backlog of --tasks (1000), and checks that every task was
answered once. Broker, Redis and Postgres are embedded, or with -c those of the
configuration; everything created there is removed.`

func (f *liveFlags) add(c *cli.Env, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.on, "live", false, "measure the whole pipeline with real processes and requests instead of simulating")
	fs.IntVar(&f.rounds, "rounds", 3, "with --live: turns of each policy")
	fs.Float64Var(&f.rate, "rate", 25, "with --live: open arrivals, tasks/s (default: the most that round_robin carries on mixed12 with p99 ≤ 1s)")
	fs.StringVarP(&c.ConfigPath, "config", "c", "", "with --live: use Kafka, Redis and Postgres of this configuration `file` instead of embedded ones")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // completion only
	cmd.Long += liveHelp
	cmd.Example += "\n  batchyard bench route --live"
}

// benchLive runs the experiment on the whole pipeline.
func benchLive(ctx context.Context, c *cli.Env, cmd *cobra.Command, f routeFlags) error {
	o, err := liveOptions(c, cmd, f)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(c.Err, "live: %s\n", livebench.Machine())
	rs, err := livebench.Run(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return cli.WithCode(cli.ExitFailed, err)
		}
		return cli.ServiceError(err)
	}
	_, _ = fmt.Fprintf(c.Err, "live: %s\n", livebench.Machine())
	if c.JSON {
		return livebench.WriteJSON(c.Out, rs)
	}
	return livebench.WriteTable(c.Out, rs)
}

func liveOptions(c *cli.Env, cmd *cobra.Command, f routeFlags) (o livebench.Options, err error) {
	given := cmd.Flags().Changed
	for _, name := range []string{"arrivals", "work", "load", "routers", "dispatch-latency", "fleet", "binding", "seeds", "learned", "trace", "max-rate", "parallel", "plot"} {
		if given(name) {
			return o, cli.UsageError("--%s is for the simulation: omit it with --live", name)
		}
	}
	o = livebench.Options{Rounds: f.live.rounds, Rate: f.live.rate, Seed: f.first,
		Tasks: liveTasks, Warmup: liveWarmup, Duration: liveDuration, Logger: c.ErrorLog(),
		Progress: func(note string) { _, _ = fmt.Fprintf(c.Err, "live: %s\n", cli.Plain(note)) }}
	if given("tasks") {
		o.Tasks = f.tasks
	}
	if given("warmup") {
		o.Warmup = f.warmup
	}
	if given("duration") {
		o.Duration = f.duration
	}
	switch {
	case o.Rounds < 1 || o.Rounds > 1000:
		return o, cli.UsageError("--rounds: %d is out of range; use 1 to 1000", o.Rounds)
	case !(o.Rate > 0 && o.Rate <= 100_000):
		return o, cli.UsageError("--rate: %g is out of range; use a number above 0 and up to 100000", o.Rate)
	case o.Tasks < 20 || o.Tasks > 1_000_000:
		return o, cli.UsageError("--tasks: %d is out of range; with --live use 20 to 1000000", o.Tasks)
	case o.Warmup < 0 || o.Warmup > time.Hour || o.Duration < time.Second || o.Duration > time.Hour:
		return o, cli.UsageError("--warmup and --duration: with --live use times up to 1h, the duration from 1s")
	}
	if !given("policy") {
		f.policies = []string{"round_robin", "expected_finish"}
	}
	for _, name := range f.policies {
		p, err := policy.New(name, policy.Config{})
		if err != nil {
			return o, cli.UsageError("--policy: cannot measure %q live: name policies, the baseline first", name)
		}
		o.Policies = append(o.Policies, livebench.Policy{Name: name, Late: p.BindsLate()})
	}
	if o.Program, err = os.Executable(); err != nil {
		return o, fmt.Errorf("finding the program's own file: %w", err)
	}
	if c.ConfigPath != "" {
		cfg, err := c.Config(nil)
		if err != nil {
			return o, err
		}
		o.Services = &livebench.Services{ConfigPath: c.ConfigPath, Kafka: cfg.Kafka, Redis: cfg.Redis, PostgresURL: cfg.Postgres.URL}
	}
	return o, nil
}
