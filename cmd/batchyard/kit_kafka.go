package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/stream"
)

// withLog connects to Kafka by the configuration and calls fn.
func (c *cli) withLog(ctx context.Context, fn func(*stream.Client, app.Config) error) (err error) {
	cfg, err := c.config(nil)
	if err != nil {
		return err
	}
	log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return serviceError(err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	return fn(log, cfg)
}

// errorLog logs errors only, to standard error.
func (c *cli) errorLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelError}))
}
