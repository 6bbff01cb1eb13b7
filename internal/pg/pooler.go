package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrSharedSessions says that a connection pooler gives each transaction another session, as PgBouncer
// with pool_mode = transaction or statement. Batchyard listens for notifications, holds advisory locks,
// prepares statements and looks up the types of its tables, and all of these belong to a session.
var ErrSharedSessions = errors.New("it is reached through a connection pooler that gives each transaction another session, " +
	"but LISTEN, advisory locks and prepared statements need a session that lasts: " +
	"set pool_mode = session for this database (PgBouncer), or point postgres.url at Postgres itself")

const (
	// poolerRounds is how often the check tries: a pooler with many idle sessions may hand out the same
	// one by chance.
	poolerRounds = 4
	// sameSession bounds the wait for a session while another one is in use: a pooler of one session has
	// no other.
	sameSession = 2 * time.Second
)

// CheckSessions returns [ErrSharedSessions] if connections do not have sessions of their own. With
// two connections, the second one begins a transaction, and keeps whatever session it gets. Without a
// pooler, it never gets the one that the first connection has had, and the first one keeps its own.
func CheckSessions(ctx context.Context, pool *pgxpool.Pool) error {
	first, err := probeConn(ctx, pool)
	if err != nil {
		return err
	}
	defer closeConn(ctx, first)
	second, err := probeConn(ctx, pool)
	if err != nil {
		return err
	}
	defer closeConn(ctx, second)
	had, err := sessionOf(ctx, first)
	if err != nil {
		return fmt.Errorf("checking the sessions of Postgres: %w", err)
	}
	for range poolerRounds {
		shared, err := probeOnce(ctx, first, second, had)
		if err != nil {
			return fmt.Errorf("checking the sessions of Postgres: %w", err)
		}
		if shared {
			return ErrSharedSessions
		}
	}
	return nil
}

// probeOnce reports whether one of the connections gets a session that it should not have.
func probeOnce(ctx context.Context, first, second *pgx.Conn, had string) (shared bool, err error) {
	if _, err := second.Exec(ctx, "BEGIN"); err != nil {
		return false, err
	}
	theirs, err := sessionOf(ctx, second)
	if err != nil {
		return false, err
	}
	if theirs == had {
		return true, nil
	}
	waiting, cancel := context.WithTimeout(ctx, sameSession)
	defer cancel()
	mine, err := sessionOf(waiting, first)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return true, nil // it waits for a session, although it has had one
	}
	if err != nil {
		return false, err
	}
	_, err = second.Exec(ctx, "ROLLBACK")
	return mine != had, err
}

// probeConn connects as the pool does, with queries in the one form that every pooler passes on.
func probeConn(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	cfg := pool.Config().ConnConfig.Copy()
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres to check its sessions: %w", err)
	}
	return conn, nil
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// sessionOf names the session that answers: by its process, and by when that began, because two servers
// may have processes with the same number.
func sessionOf(ctx context.Context, conn *pgx.Conn) (name string, err error) {
	err = conn.QueryRow(ctx, "SELECT pg_backend_pid() || ' ' || coalesce((SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()), '')").Scan(&name)
	return name, err
}
