package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
)

func serveCommand(c *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve [stage …]",
		Short: "Run stages against real Kafka, Redis and Postgres",
		Long: `Run all stages, or those named, against the Kafka, Redis and Postgres of the
configuration. Any stage can run in any number of processes. On SIGTERM it starts
nothing new, finishes or returns its work, and exits with 0. It watches the file:
settings that can change while it runs take effect at once, and the log names those
that need a restart.

The database must have its schema (batchyard migrate up) and Kafka its topics
(batchyard topics create).`,
		Example: `  batchyard serve -c config.yaml
  batchyard serve router batcher -c config.yaml
  BATCHYARD_KAFKA_BROKERS=kafka-1:9092,kafka-2:9092 batchyard serve workers`,
		ValidArgsFunction: completeStages,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := c.Config(nil)
			if err != nil {
				return err
			}
			path, err := app.ConfigPath(c.ConfigPath)
			if err != nil {
				return cli.WithCode(cli.ExitUsage, err)
			}
			logger, level := app.NewLogger(cfg.Log)
			a, err := app.New(cmd.Context(), cfg, args, logger)
			if err != nil {
				return cli.ServiceError(err)
			}
			a.Follow(app.Source{Path: path, Level: level, Load: func() (app.Config, error) { return c.Config(nil) }})
			err = a.Run(cmd.Context(), func() {
				stages := args
				if len(stages) == 0 {
					stages = app.StageNames()
				}
				logger.Info("ready", "stages", fmt.Sprint(stages), "listen", a.Address())
				if len(cfg.Kafka.SigningKeys) == 0 {
					logger.Warn("kafka.signing_keys is empty: anyone who may write to the topics can forge results, assignments and audit events; set the same keys in every process")
				}
			})
			if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "listen" {
				return cli.WithCode(cli.ExitUsage, err) // the address is a setting
			}
			return err
		},
	}
	c.ConfigFlag(cmd)
	return cmd
}
