// Package benchcmd has the bench commands, which measure parts of Batchyard.
package benchcmd

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/bench/routesim"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/router/policy"
)

// Command returns bench.
func Command(c *cli.Env) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use: "bench", Short: "Measure parts of Batchyard", Example: "  batchyard bench route --load 0.85",
	}, benchRouteCommand(c))
}

// routeFlags are the flags of bench route.
type routeFlags struct {
	policies, arrivals, works, fleets, bindings []string
	loads                                       []string
	routers                                     []int
	hops                                        []time.Duration

	seeds, tasks, parallel int
	first                  uint64
	warmup, duration       time.Duration
	trace, plot, maxRate   string
	learned                bool

	live liveFlags
}

func benchRouteCommand(c *cli.Env) *cobra.Command {
	var f routeFlags
	cmd := &cobra.Command{
		Use: "route", Short: "Compare the router's policies on a simulated fleet",
		Long: `Simulates a fleet of unequal devices in virtual time and lets the router's own
code decide, with each policy in turn on the same tasks. For each it prints the
response times, the goodput and the utilisation (slots weighted by their rate),
beside the analytic lower bound of the mean: one queue, fastest first, preemptive.
The same seeds give the same figures.

Flags that take a list produce one part of the table per combination.

A run that breaks an invariant (conservation, causality, slots, credits, work
conservation, no use of what could not be known) is an error.`,
		Example: `  batchyard bench route --load 0.85
  batchyard bench route --policy expected_finish,prequal --load 0.5,0.7,0.85,0.95 --plot routes.png
  batchyard bench route --policy round_robin,expected_finish --max-rate p99=1s --json`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.live.on {
				return benchLive(cmd.Context(), c, cmd, f)
			}
			return benchRoute(cmd.Context(), c, f)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.policies, "policy", []string{"all"}, "policies, or all")
	fs.StringSliceVar(&f.arrivals, "arrivals", []string{"poisson"}, "poisson or trace")
	fs.StringSliceVar(&f.works, "work", []string{"exponential"}, "exponential, lognormal (standard deviation twice the mean) or trace (by generated tokens)")
	fs.StringSliceVar(&f.loads, "load", []string{"0.5", "0.7", "0.85", "0.95", "1.2"}, "offered loads, shares of the fleet's capacity")
	fs.IntSliceVar(&f.routers, "routers", []int{1}, "numbers of routers")
	fs.DurationSliceVar(&f.hops, "dispatch-latency", []time.Duration{2 * time.Millisecond}, "times from an assignment to the start of its request; routers learn of a free slot after a quarter of it")
	fs.StringSliceVar(&f.fleets, "fleet", []string{"mixed12"}, "fleets: "+strings.Join(routesim.FleetNames(), ", "))
	fs.StringSliceVar(&f.bindings, "binding", []string{"auto"}, "when tasks are bound to devices: auto, late or early")
	fs.IntVar(&f.seeds, "seeds", 8, "runs of each arm, each with its own seed")
	fs.Uint64Var(&f.first, "first-seed", 1, "the first seed")
	fs.DurationVar(&f.duration, "duration", 5*time.Minute, "virtual time to measure in each run")
	fs.IntVar(&f.tasks, "tasks", 0, "measure about this many tasks in each run, instead of a time")
	fs.DurationVar(&f.warmup, "warmup", time.Minute, "virtual time before that, not measured")
	fs.BoolVar(&f.learned, "learned", false, "start with learned rates")
	fs.StringVar(&f.trace, "trace", "", "recorded requests, a CSV `file` with TIMESTAMP,ContextTokens,GeneratedTokens")
	fs.StringVar(&f.maxRate, "max-rate", "", "find the highest load that stays within a `limit` such as p99=1s; ignores --load")
	fs.IntVar(&f.parallel, "parallel", 0, "runs at a time (default: one per processor)")
	fs.StringVar(&f.plot, "plot", "", "draw the first setting into a PNG `file`")
	_ = cmd.MarkFlagFilename("trace", "csv") // completion only
	_ = cmd.MarkFlagFilename("plot", "png")
	c.JSONFlag(cmd)
	f.live.add(c, cmd)
	cli.CompleteFlag(cmd, "policy", append(policy.Names(), "all"))
	cli.CompleteFlag(cmd, "arrivals", routesim.ArrivalNames)
	cli.CompleteFlag(cmd, "work", routesim.WorkNames)
	cli.CompleteFlag(cmd, "fleet", routesim.FleetNames())
	cli.CompleteFlag(cmd, "binding", []string{"auto", "late", "early"})
	return cmd
}

// benchRoute runs the experiment. Mistakes in the flags are reported before anything
// is simulated.
func benchRoute(ctx context.Context, c *cli.Env, f routeFlags) error {
	plan, err := f.plan()
	if err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	// Tasks are short-lived and memory is plentiful: collecting less often is faster.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	if f.maxRate != "" {
		return benchMaxRate(ctx, c, f, plan)
	}
	p := c.ProgressOf("simulating", len(plan.Arms)*plan.Seeds, "runs")
	rs, err := plan.Run(ctx, func(done, _ int) { p.Set(done) })
	p.Finish()
	if err != nil {
		return err
	}
	if c.JSON {
		err = routesim.WriteJSON(c.Out, rs)
	} else {
		err = routesim.WriteTable(c.Out, rs)
	}
	if err != nil || f.plot == "" {
		return err
	}
	return routesim.Plot(f.plot, rs)
}

func benchMaxRate(ctx context.Context, c *cli.Env, f routeFlags, plan *routesim.Plan) error {
	limit, err := routesim.ParseLimit(f.maxRate)
	if err != nil {
		return cli.WithCode(cli.ExitUsage, fmt.Errorf("--max-rate: %w", err))
	}
	p := c.ProgressOf("searching", len(plan.Arms), "arms")
	defer p.Finish()
	var rs []routesim.Result
	for i, a := range plan.Arms {
		r, err := plan.MaxRate(ctx, a, limit)
		if err != nil {
			return err
		}
		rs = append(rs, r)
		p.Set(i + 1)
	}
	if c.JSON {
		return routesim.WriteMaxRatesJSON(c.Out, rs, limit)
	}
	return routesim.WriteMaxRates(c.Out, rs, limit)
}

// plan returns the experiment that the flags describe.
func (f *routeFlags) plan() (*routesim.Plan, error) {
	if slices.Contains(f.policies, "all") {
		f.policies = policy.Names()
	}
	for _, p := range f.policies {
		if !slices.Contains(policy.Names(), p) {
			return nil, fmt.Errorf("--policy: unknown policy %q: use %s", p, cli.Or(policy.Names()))
		}
	}
	for _, b := range f.bindings {
		if b != "auto" && b != "late" && b != "early" {
			return nil, fmt.Errorf("--binding: unknown binding %q: use auto, late or early", b)
		}
	}
	var loads []float64
	for _, s := range f.loads {
		l, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return nil, fmt.Errorf("--load: not a number: %q", s)
		}
		loads = append(loads, l)
	}
	if f.maxRate != "" {
		loads = []float64{1}
	}
	switch {
	case f.seeds < 1 || f.seeds > 10_000:
		return nil, fmt.Errorf("--seeds: %d is out of range; use 1 to 10000", f.seeds)
	case f.duration <= 0 || f.duration > 1000*time.Hour || f.warmup < 0 || f.warmup > 1000*time.Hour:
		return nil, errors.New("--duration and --warmup: use times up to 1000h, the duration above 0")
	case f.tasks < 0 || f.tasks > 100_000_000:
		return nil, fmt.Errorf("--tasks: %d is out of range; use up to 100000000", f.tasks)
	}
	plan := &routesim.Plan{
		Arms: routesim.Grid{
			Fleets: f.fleets, Arrivals: f.arrivals, Works: f.works, Loads: loads, Routers: f.routers, Hops: f.hops, Bindings: f.bindings, Policies: f.policies,
		}.Arms(),
		Seeds: f.seeds, First: f.first, Warmup: f.warmup, Duration: f.duration, Tasks: f.tasks, Learned: f.learned, Parallel: f.parallel,
	}
	if f.plot != "" {
		if f.maxRate != "" {
			return nil, errors.New("--plot and --max-rate cannot be combined: each policy has a load of its own")
		}
		if err := jobs.CheckOutput(f.plot); err != nil {
			return nil, fmt.Errorf("--plot: %w", err)
		}
	}
	if f.trace != "" {
		t, err := routesim.ReadTrace(f.trace)
		if err != nil {
			return nil, err
		}
		plan.Trace = t
	}
	for _, a := range plan.Arms { // mistakes are reported before the first run
		s, err := plan.Setup(a, f.first)
		if err != nil {
			return nil, err
		}
		if err := s.Check(); err != nil {
			return nil, err
		}
	}
	return plan, nil
}
