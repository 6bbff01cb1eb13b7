package main

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/agent"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// defaultInterval is how often the server expects heartbeats.
const defaultInterval = 5 * time.Second

func agentCommand(c *cli.Env) *cobra.Command {
	var cfg agent.Config
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run beside a device, and report it to a server",
		Long: `Sends a heartbeat for one device every few seconds: that it answers, the host's cpu,
memory and io, the latency to the device, and its queue and requests in flight if
its /metrics has them. On SIGTERM or SIGINT it reports that the device leaves.

Bearer tokens come from the environment: BATCHYARD_SERVER_KEY for the server,
BATCHYARD_DEVICE_KEY for the device.`,
		Example: `  batchyard agent --id gpu-1 --url http://127.0.0.1:8000 --slots 8
  batchyard agent --id gpu-2 --url http://127.0.0.1:8000 --advertise http://10.0.0.7:8000 \
    --models llama-3.1-8b --tags gpu,eu --server http://batchyard:8080`,
		Args: cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Server = c.Server
			if cfg.ID == "" || cfg.URL == "" {
				return cli.UsageError("%s needs --id and --url; see `%s --help`", cli.NameOf(cmd), cmd.CommandPath())
			}
			if cfg.Slots < 1 || cfg.Interval <= 0 {
				return cli.UsageError("--slots and --interval must be above 0")
			}
			err := agent.Run(cmd.Context(), cfg, slog.New(slog.NewTextHandler(c.Err, nil)))
			// Its only errors are about the configuration, which is flags here.
			return cli.WithCode(cli.ExitUsage, err)
		},
	}
	c.ServerFlag(cmd)
	fs := cmd.Flags()
	fs.StringVar(&cfg.ID, "id", "", "`name` of the device, unique in the fleet")
	fs.StringVar(&cfg.URL, "url", "", "base `URL` at which the agent reaches the device")
	fs.StringVar(&cfg.Advertise, "advertise", "", "base `URL` at which the workers reach the device (default: --url)")
	fs.StringSliceVar(&cfg.Models, "models", nil, "`models` that it serves (default: those it lists)")
	fs.StringSliceVar(&cfg.Tags, "tags", nil, "capability `tags` that tasks may ask for")
	fs.IntVar(&cfg.Slots, "slots", 1, "requests that it can run at the same time")
	fs.DurationVar(&cfg.Interval, "interval", defaultInterval, "time between two heartbeats")
	cfg.ServerKeyEnv, cfg.DeviceKeyEnv = "BATCHYARD_SERVER_KEY", "BATCHYARD_DEVICE_KEY"
	return cmd
}
