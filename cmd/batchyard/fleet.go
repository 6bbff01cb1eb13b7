package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
)

// simulation is what the flags of `fleet` say.
type simulation struct {
	models  []string
	slots   int
	takes   time.Duration
	port    int
	control string
	engine  string
	list    bool
}

func fleetCommand(c *cli.Env) *cobra.Command {
	var o simulation
	cmd := &cobra.Command{
		Use:   "fleet [NAME[=PLAY]]...",
		Short: "Run simulated devices that fail in the ways that real ones do",
		Long: `Runs OpenAI-compatible HTTP servers on loopback ports until interrupted. Each answers
well, or plays what real engines have been seen to do: --list shows what there is, and
docs/failures.md what Batchyard makes of it.

With --control, PUT /NAME/PLAY makes a device play something else while it runs,
DELETE /NAME makes it answer well again, and GET / shows what each was asked.`,
		Example: `  batchyard fleet good broken=server_error lost=no_endpoint/404
  batchyard fleet a b c --port 9101 --models llama-3.1-8b --time 200ms --control 127.0.0.1:9100
  curl -X PUT 127.0.0.1:9100/b/too_long/vllm`,
		Args: cobra.ArbitraryArgs, ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.list {
				t := cli.NewTable(c.Out, "PLAY", "THE DEVICE")
				for _, p := range fleet.Plays() {
					t.Row(p.Name, p.Says)
				}
				return t.Flush()
			}
			return simulate(cmd.Context(), c, o, args)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.models, "models", []string{fleet.AnyModel}, "`models` that they serve")
	f.IntVar(&o.slots, "slots", 4, "requests that each runs at the same time")
	f.DurationVar(&o.takes, "time", 100*time.Millisecond, "how long a request takes")
	f.IntVar(&o.port, "port", 0, "`port` of the first device; the others follow (default: free ones)")
	f.StringVar(&o.engine, "engine", "", "`engine` that they imitate: llamacpp or litellm (default: what all have in common)")
	f.StringVar(&o.control, "control", "", "`address` of the controls (default: none)")
	f.BoolVar(&o.list, "list", false, "list what devices can play")
	return cmd
}

// specs reads the arguments.
func (o *simulation) specs(args []string) (specs []fleet.Spec, plays []fleet.Play, err error) {
	if o.slots < 1 || o.takes < 0 || o.port < 0 || o.port+len(args) > 1<<16 {
		return nil, nil, cli.UsageError("--slots must be 1 or more, --time 0 or more, and --port leave room for all devices below 65536")
	}
	if o.engine != "" && !slices.Contains(fleet.Engines(), o.engine) {
		return nil, nil, cli.UsageError("--engine %q: use one of %s", o.engine, strings.Join(fleet.Engines(), ", "))
	}
	if len(args) == 0 {
		args = []string{"sim-1", "sim-2", "sim-3"}
	}
	for i, arg := range args {
		name, play, odd := strings.Cut(arg, "=")
		if err := device.ValidateID(name); err != nil {
			return nil, nil, cli.UsageError("%q: the name: %s", arg, err)
		}
		var p fleet.Play
		if odd {
			if p, err = fleet.FindPlay(play); err != nil {
				return nil, nil, cli.UsageError("%s", err)
			}
		}
		s := fleet.Spec{ID: name, Models: o.models, Slots: o.slots, Engine: o.engine, ServiceTime: o.takes, Distribution: fleet.Lognormal, CV: 0.5, Seed: uint64(i + 1)}
		if o.port > 0 {
			s.Port = o.port + i
		}
		specs, plays = append(specs, s), append(plays, p)
	}
	return specs, plays, nil
}

// simulate runs the devices until ctx ends.
func simulate(ctx context.Context, c *cli.Env, o simulation, args []string) error {
	specs, plays, err := o.specs(args)
	if err != nil {
		return err
	}
	f, err := fleet.Start(ctx, specs)
	if err != nil {
		return err
	}
	defer f.Close()
	var use []string
	for i, d := range f.Devices() {
		if err := d.Play(plays[i]); err != nil {
			return err
		}
		says := "answers well"
		if plays[i].Name != "" {
			says = plays[i].Says
		}
		c.Printf("%-16s %s   %s\n", d.ID(), d.URL(), says)
		use = append(use, "--device "+d.ID()+"="+d.URL())
	}
	if o.control != "" {
		stop, at, err := serveControls(ctx, f, o.control)
		if err != nil {
			return err
		}
		defer stop()
		c.Printf("%-16s %s\n", "controls", at)
	}
	c.Printf("\nbatchyard dev %s\n", strings.Join(use, " "))
	<-ctx.Done()
	return nil
}

// serveControls serves the fleet's controls on an address.
func serveControls(ctx context.Context, f *fleet.Fleet, address string) (stop func(), at string, err error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, "", cli.UsageError("--control %s: %s", address, err)
	}
	srv := &http.Server{Handler: f.Controls(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // until it is closed
	}()
	return func() { _ = srv.Close(); <-done }, fmt.Sprint("http://", ln.Addr()), nil
}
