package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/stream"
)

func topicsCommand(c *cli.Env) *cobra.Command {
	create := &cobra.Command{
		Use: "create", Short: "Create missing topics",
		Long:    "Creates missing topics. Existing ones stay as they are.",
		Example: "  batchyard topics create -c config.yaml\n  BATCHYARD_KAFKA_BROKERS=kafka:9092 batchyard topics create",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return topicsCreate(cmd.Context(), c) },
	}
	list := &cobra.Command{
		Use: "list", Short: "List the topics and what they hold",
		Long:    "Lists the topics with their records and keys. Exit code 2 if one is missing.",
		Example: "  batchyard topics list\n  batchyard topics list --json",
		Args:    cli.Exactly(), ValidArgsFunction: cli.CompleteNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return topicsList(cmd.Context(), c) },
	}
	for _, cmd := range []*cobra.Command{create, list} {
		c.ConfigFlag(cmd)
		c.JSONFlag(cmd)
	}
	return cli.Group(&cobra.Command{Use: "topics", Short: "Create or list the topics in Kafka", Example: "  batchyard topics create"}, create, list)
}

func topicsCreate(ctx context.Context, c *cli.Env) error {
	return c.WithLog(ctx, func(log *stream.Client, _ app.Config) error {
		created, err := log.CreateTopics(ctx)
		for _, name := range created {
			if c.JSON {
				if err := c.PrintJSON(map[string]string{"created": name}); err != nil {
					return err
				}
				continue
			}
			c.Printf("created: %s\n", name)
		}
		if err == nil && len(created) == 0 && !c.JSON {
			c.Printf("nothing to do: all %d topics exist\n", len(stream.Topics))
		}
		return err
	})
}

// topic is a topic in JSON.
type topic struct {
	Name     string `json:"name"`
	Key      string `json:"key"`
	Holds    string `json:"holds"`
	MaxBytes int64  `json:"max_message_bytes"`
}

func topicsList(ctx context.Context, c *cli.Env) error {
	return c.WithLog(ctx, func(log *stream.Client, cfg app.Config) error {
		t := cli.NewTable(c.Out, "TOPIC", "KEY", "A RECORD IS", "AT MOST")
		for _, one := range stream.Topics {
			name := cfg.Kafka.TopicPrefix + one.Name
			if c.JSON {
				if err := c.PrintJSON(topic{name, one.Key, one.Holds, one.MaxBytes}); err != nil {
					return err
				}
				continue
			}
			t.Row(name, one.Key, one.Holds, cli.Size(one.MaxBytes))
		}
		if !c.JSON {
			if err := t.Flush(); err != nil {
				return err
			}
		}
		return cli.WithCode(cli.ExitUsage, log.CheckTopics(ctx))
	})
}
