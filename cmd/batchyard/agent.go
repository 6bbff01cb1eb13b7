package main

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/agent"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/device/access"
)

// defaultInterval is how often the server expects heartbeats.
const defaultInterval = 5 * time.Second

// agentFlags are the flags of `batchyard agent`.
type agentFlags struct {
	devices   []string
	advertise string
	slots     int
	interval  time.Duration
}

func agentCommand(c *cli.Env) *cobra.Command {
	var o agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run beside devices, and report them to a server",
		Long: `Sends a heartbeat for each --device every few seconds: that it answers, or why not, the
host's cpu, memory and io, the latency to the device, its models and their context
lengths, and its queue and requests in flight if it says them. On SIGTERM or SIGINT it
reports that the devices leave.

--device takes the same settings as in run, dev and devices.list of the configuration:
` + access.Syntax + `.
The agent uses keys, headers and certificates for its own checks and sends them nowhere:
workers need an entry with the same settings in devices.list, called like the device or *.

BATCHYARD_SERVER_KEY in the environment is the bearer token for the server.`,
		Example: `  batchyard agent --device gpu-1=http://127.0.0.1:8000,slots=8
  batchyard agent --device gpu-2=https://127.0.0.1:8443,model=llama-3.1-8b,tag=gpu,key_file=/run/secrets/gpu-2,ca_file=lab.pem \
    --advertise https://10.0.0.7:8443 --server http://batchyard:8080`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgents(cmd, c, o) },
	}
	c.ServerFlag(cmd)
	fs := cmd.Flags()
	fs.StringArrayVar(&o.devices, "device", nil, deviceHelp)
	fs.StringVar(&o.advertise, "advertise", "", "base `URL` at which the workers reach the device, if it is another one")
	fs.IntVar(&o.slots, "slots", access.DefaultSlots, "requests that each --device runs at the same time, unless it says otherwise")
	fs.DurationVar(&o.interval, "interval", defaultInterval, "time between two heartbeats")
	return cmd
}

// runAgents reports the devices until the command is interrupted.
func runAgents(cmd *cobra.Command, c *cli.Env, o agentFlags) error {
	devices, err := parseDevices(o.devices, o.slots)
	switch {
	case err != nil:
		return err
	case len(devices) == 0:
		return cli.UsageError("%s needs --device NAME=URL; see `%s --help`", cli.NameOf(cmd), cmd.CommandPath())
	case o.interval <= 0:
		return cli.UsageError("--interval must be above 0")
	case o.advertise != "" && len(devices) > 1:
		return cli.UsageError("--advertise is the URL of one device: start an agent for each")
	}
	book := agent.NewBook()
	if err := book.Load(devices); err != nil {
		return cli.WithCode(cli.ExitUsage, err)
	}
	defer book.CloseIdle()
	logger := slog.New(slog.NewTextHandler(c.Err, nil))
	// A mistake in one of them ends all: nothing is reported by half.
	g, ctx := errgroup.WithContext(cmd.Context())
	for i := range devices {
		cfg := agent.Of(&devices[i], book)
		cfg.Server, cfg.ServerKeyEnv, cfg.Advertise, cfg.Interval = c.Server, "BATCHYARD_SERVER_KEY", o.advertise, o.interval
		g.Go(func() error { return agent.Run(ctx, cfg, logger) })
	}
	// Its only errors are about the configuration, which is flags here.
	return cli.WithCode(cli.ExitUsage, g.Wait())
}
