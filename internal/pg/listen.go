package pg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ListenOptions say what to listen to.
type ListenOptions struct {
	Channel string
	// Quiet is the time without a notification after which the connection is checked with a ping:
	// a connection that was cut silently looks the same as a quiet one.
	Quiet time.Duration
	// Notified is called with the text of each notification. It must not block.
	Notified func(text string)
	// Missed is called when notifications may have been lost: after each connect, and after each
	// ping. Then the listener has to look for itself. It must not block.
	Missed func()
	Logger *slog.Logger
}

// Listen receives notifications until ctx ends. It reconnects indefinitely when the connection
// drops or stops answering pings. The connection has the settings of the pool but is not taken
// from it.
//
//	connecting ──▶ listening: Missed() once ──▶ a notification: Notified(its text)
//	    ▲                                 └──▶ quiet for long: ping, then Missed()
//	    └──────── the connection is lost ◀──┘
func Listen(ctx context.Context, pool *pgxpool.Pool, o ListenOptions) {
	wait := NewBackoff()
	failing := false
	for {
		err := listenOnce(ctx, pool, o, func() {
			if failing {
				o.Logger.Info("listening to Postgres again", "channel", o.Channel)
			}
			failing = false
			wait.Reset()
		})
		if ctx.Err() != nil {
			return
		}
		if !failing {
			o.Logger.Warn("listening to Postgres failed; trying again until it works", "channel", o.Channel, "error", Describe(err))
			failing = true
		}
		if Sleep(ctx, wait.NextBackOff(), nil) != nil {
			return
		}
	}
}

func listenOnce(ctx context.Context, pool *pgxpool.Pool, o ListenOptions, ready func()) error {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server ends the LISTEN with the connection
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{o.Channel}.Sanitize()); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	ready()
	o.Missed()
	for {
		silence, cancel := context.WithTimeout(ctx, o.Quiet)
		n, err := conn.WaitForNotification(silence)
		quiet := errors.Is(silence.Err(), context.DeadlineExceeded) && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			o.Notified(n.Payload)
		case quiet && !conn.IsClosed():
			alive, cancel := context.WithTimeout(ctx, min(o.Quiet, 10*time.Second))
			err := conn.Ping(alive)
			cancel()
			if err != nil {
				return fmt.Errorf("pinging the listening connection: %w", err)
			}
			o.Missed()
		default:
			return fmt.Errorf("waiting for notifications: %w", err)
		}
	}
}
