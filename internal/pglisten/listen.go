// Package pglisten hears notifications of Postgres on a connection of its own
// that comes back by itself.
//
//	connecting ──▶ listening: Changed("any") once ──▶ a notification: Changed(its text)
//	    ▲                                        └──▶ quiet for long: is it alive? then Changed(any)
//	    └──────────── the connection is lost ◀──┘
//
// What is told while there is no connection is lost, so whoever listens has to
// look by itself when it is called with any.
package pglisten

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options say what to listen to.
type Options struct {
	Channel string
	// Quiet is after how long without a notification the connection is asked for a
	// sign of life: one that was cut without a word looks the same as a quiet one.
	Quiet time.Duration
	// Changed hears each notification with its text; any is true when some may have
	// been missed. It must not block.
	Changed func(text string, any bool)
	Log     *slog.Logger
}

// Listen listens until ctx ends. The connection is made with the settings of
// the pool and is none of its connections.
func Listen(ctx context.Context, pool *pgxpool.Pool, o Options) {
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second), backoff.WithMaxElapsedTime(0))
	bad := false
	for {
		err := once(ctx, pool, o, func() {
			if bad {
				o.Log.Info("listening to Postgres again", "channel", o.Channel)
			}
			bad = false
			wait.Reset()
		})
		if ctx.Err() != nil {
			return
		}
		if !bad {
			o.Log.Warn("listening to Postgres does not work; trying until it does", "channel", o.Channel, "error", describe(err))
			bad = true
		}
		t := time.NewTimer(wait.NextBackOff())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

func once(ctx context.Context, pool *pgxpool.Pool, o Options, ready func()) error {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server forgets what a connection listened to
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{o.Channel}.Sanitize()); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	ready()
	o.Changed("", true)
	for {
		silence, cancel := context.WithTimeout(ctx, o.Quiet)
		n, err := conn.WaitForNotification(silence)
		quiet := errors.Is(silence.Err(), context.DeadlineExceeded) && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			o.Changed(n.Payload, false)
		case quiet && !conn.IsClosed():
			alive, cancel := context.WithTimeout(ctx, min(o.Quiet, 10*time.Second))
			err := conn.Ping(alive)
			cancel()
			if err != nil {
				return fmt.Errorf("asking the listening connection for a sign of life: %w", err)
			}
			o.Changed("", true)
		default:
			return fmt.Errorf("waiting for notifications: %w", err)
		}
	}
}

// describe leaves out the details in which Postgres quotes values.
func describe(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprintf("%s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return err.Error()
}
