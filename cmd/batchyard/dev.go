package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/cmd/internal/local"
	"github.com/batchyard/batchyard/device/access"
)

func devCommand(c *cli.Env) *cobra.Command {
	var o local.Options
	var devices []string
	var slots int
	var verbose bool
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process until interrupted",
		Long: `Run broker, Redis, Postgres and all stages in one process, with the HTTP API.
Single node, for development. With a data directory, unfinished work continues when
the process starts again, even after a crash; without one, everything is lost.
Whatever the configuration says, callbacks may go to private addresses, and without
a secret they are unsigned.

Without --device, and without devices in the configuration, a simulated fleet of unequal
devices answers over real HTTP.

What a server needs is written behind its URL, or in the configuration (devices.list):
  --device gpu-1=https://10.0.0.5/openai,key_env=GPU_KEY,ca_file=lab.pem,slots=16
  --device edge=http://10.0.0.9:11434,alias=small=qwen3:0.6b,tag=edge`,
		Example: `  batchyard dev
  batchyard dev --data-dir ./data --listen 127.0.0.1:8080
  batchyard dev --device gpu-1=http://10.0.0.5:8000 --device edge=http://10.0.0.9:8080 --slots 8`,
		Args: cli.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Devices, err = parseDevices(devices, slots); err != nil {
				return err
			}
			o.ConfigPath, o.Follow, o.Configured, o.Version, o.Logger, o.Progress = c.ConfigPath, true, true, c.Version, c.ErrorLog(), c.Step
			if verbose {
				o.Logger = debugLog()
			}
			o.Absent, o.Present = absentDevice(c), presentDevice(c)
			s, err := local.Start(cmd.Context(), o)
			if err != nil {
				return cli.ServiceError(err)
			}
			c.Step("")
			c.Printf("ready\n  API       %s   (openapi at /openapi.json)\n  Kafka     %s\n  Redis     %s\n  Postgres  psql '%s'\n  data      %s\n",
				s.URL, strings.Join(s.Stack.Brokers, ","), s.Stack.RedisAddr, s.Stack.PostgresURL, s.Stack.DataDir)
			if err := printDevices(cmd.Context(), c, s); err != nil {
				return errors.Join(err, s.Close())
			}
			select {
			case <-cmd.Context().Done():
				return s.Close()
			case <-s.Ended():
				return s.Close()
			}
		},
	}
	c.ConfigFlag(cmd)
	f := cmd.Flags()
	f.BoolVarP(&verbose, "verbose", "v", false, "log what the stages do")
	f.StringVar(&o.DataDir, "data-dir", "", "keep everything in this directory (default: keep nothing)")
	f.StringVar(&o.Listen, "listen", "", "address of the HTTP API; port 0 takes a free one (default: api.listen, 127.0.0.1:8080)")
	f.StringArrayVar(&devices, "device", nil, deviceHelp)
	f.IntVar(&slots, "slots", 4, "requests that each --device runs at the same time, unless it says otherwise")
	f.BoolVar(&o.NoDevices, "no-devices", false, "start no devices: they join by sending heartbeats")
	return cmd
}

// printDevices prints a line for each device: what it serves, or why it does not answer.
func printDevices(ctx context.Context, c *cli.Env, s *local.System) error {
	devices, err := s.Devices(ctx)
	if err != nil {
		return err
	}
	t := cli.NewTable(c.Out)
	for _, d := range devices {
		state, note := "up", "models "+cli.Short(strings.Join(d.Models, ", "), 120)
		if d.Problem != "" {
			state, note = "down", cli.Short(d.Problem, 300)
		}
		t.Row("  device", d.ID, state, d.URL, note)
	}
	return t.Flush()
}

// deviceHelp describes --device.
const deviceHelp = "`NAME=URL[,option=value]…` of an OpenAI-compatible server; repeatable"

// parseDevices reads the words of --device.
func parseDevices(words []string, slots int) ([]access.Device, error) {
	var out []access.Device
	for _, word := range words {
		if slots < 1 {
			return nil, cli.UsageError("--slots %d: give 1 or more", slots)
		}
		d, err := access.Parse(word, slots)
		if err != nil {
			name, _, _ := strings.Cut(word, "=") // the rest may hold a key
			return nil, cli.UsageError("--device %s: %s", cli.Plain(name), err)
		}
		if slices.ContainsFunc(out, func(o access.Device) bool { return o.Name == d.Name }) {
			return nil, cli.UsageError("--device %s: there are two devices of this name: give each its own", cli.Plain(d.Name))
		}
		out = append(out, d)
	}
	return out, nil
}
