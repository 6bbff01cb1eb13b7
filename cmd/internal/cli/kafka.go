package cli

import (
	"context"
	"errors"
	"log/slog"

	"github.com/batchyard/batchyard/cmd/internal/app"
	"github.com/batchyard/batchyard/stream"
)

// WithLog connects to the Kafka of the configuration, calls fn, and disconnects.
func (c *Env) WithLog(ctx context.Context, fn func(*stream.Client, app.Config) error) (err error) {
	cfg, err := c.Config(nil)
	if err != nil {
		return err
	}
	log, err := stream.Open(ctx, cfg.Kafka, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return ServiceError(err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	return fn(log, cfg)
}

// ErrorLog returns a logger that writes only errors, to standard error.
func (c *Env) ErrorLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.Err, &slog.HandlerOptions{Level: slog.LevelError}))
}
