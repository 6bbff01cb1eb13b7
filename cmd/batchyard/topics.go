package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/stream"
)

func topicsCommand(c *cli) *cobra.Command {
	create := &cobra.Command{
		Use: "create", Short: "Create the topics that are missing",
		Long:    "Creates the topics that are missing. Those that are there stay as they are.",
		Example: "  batchyard topics create -c config.yaml\n  BATCHYARD_KAFKA_BROKERS=kafka:9092 batchyard topics create",
		Args:    exactly(), ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return topicsCreate(cmd.Context(), c) },
	}
	list := &cobra.Command{
		Use: "list", Short: "List the topics and what is in them",
		Long:    "Lists the topics, and what their records and keys are. Exit code 2 if one is missing.",
		Example: "  batchyard topics list\n  batchyard topics list --json",
		Args:    exactly(), ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, _ []string) error { return topicsList(cmd.Context(), c) },
	}
	for _, cmd := range []*cobra.Command{create, list} {
		c.configFlag(cmd)
		c.jsonFlag(cmd)
	}
	return group(&cobra.Command{Use: "topics", Short: "Look after the topics in Kafka", Example: "  batchyard topics create"}, create, list)
}

func topicsCreate(ctx context.Context, c *cli) error {
	return c.withLog(ctx, func(log *stream.Client, _ app.Config) error {
		created, err := log.CreateTopics(ctx)
		for _, name := range created {
			if c.json {
				if err := c.printJSON(map[string]string{"created": name}); err != nil {
					return err
				}
				continue
			}
			c.printf("created: %s\n", name)
		}
		if err == nil && len(created) == 0 && !c.json {
			c.printf("nothing to do: all %d topics are there\n", len(stream.Topics))
		}
		return err
	})
}

// topic is a topic as JSON has it.
type topic struct {
	Name     string `json:"name"`
	Key      string `json:"key"`
	Holds    string `json:"holds"`
	MaxBytes int64  `json:"max_message_bytes"`
}

func topicsList(ctx context.Context, c *cli) error {
	return c.withLog(ctx, func(log *stream.Client, cfg app.Config) error {
		t := newTable(c.out, "TOPIC", "KEY", "A RECORD IS", "AT MOST")
		for _, one := range stream.Topics {
			name := cfg.Kafka.TopicPrefix + one.Name
			if c.json {
				if err := c.printJSON(topic{name, one.Key, one.Holds, one.MaxBytes}); err != nil {
					return err
				}
				continue
			}
			t.row(name, one.Key, one.Holds, size(one.MaxBytes))
		}
		if !c.json {
			if err := t.flush(); err != nil {
				return err
			}
		}
		return withCode(exitUsage, log.CheckTopics(ctx))
	})
}
