package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/batchyard/batchyard/internal/unreachable"
)

//go:embed sql/*.sql
var files embed.FS

// table is the table of applied versions.
const table = "batchyard_schema"

// lockKey is the advisory lock that serialises migrations.
const lockKey = 0x62617463680001

// Migration is one numbered step.
type Migration struct {
	Version   int64
	Name      string
	AppliedAt time.Time // zero: not applied
}

// Querier is what Check and Version need: a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Up applies all missing migrations. If one fails, those before it stay applied.
func Up(ctx context.Context, url string) error {
	return with(ctx, url, func(p *goose.Provider) error {
		_, err := p.Up(ctx)
		return err
	})
}

// Down reverts the latest migration and deletes the data in its tables.
func Down(ctx context.Context, url string) error {
	return with(ctx, url, func(p *goose.Provider) error {
		_, err := p.Down(ctx)
		if errors.Is(err, goose.ErrNoNextVersion) {
			return nil
		}
		return err
	})
}

// Status returns all migrations and when each was applied.
func Status(ctx context.Context, url string) ([]Migration, error) {
	var out []Migration
	err := with(ctx, url, func(p *goose.Provider) error {
		all, err := p.Status(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			m := Migration{Version: s.Source.Version, Name: s.Source.Path}
			if s.State == goose.StateApplied {
				m.AppliedAt = s.AppliedAt
			}
			out = append(out, m)
		}
		return nil
	})
	return out, err
}

// Needed returns the schema version that this program needs: the highest it contains.
func Needed() int64 {
	sub, err := fs.Sub(files, "sql")
	if err != nil {
		panic(fmt.Sprintf("reading the embedded migrations: %v", err)) // the name is a constant
	}
	p, err := goose.NewProvider(goose.DialectPostgres, new(sql.DB), sub)
	if err != nil {
		panic(fmt.Sprintf("reading the embedded migrations: %v", err)) // a test reads them all
	}
	var highest int64
	for _, s := range p.ListSources() {
		highest = max(highest, s.Version)
	}
	return highest
}

// Version returns the version of the database's schema; 0 if it has none.
func Version(ctx context.Context, db Querier) (int64, error) {
	var v int64
	err := db.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+table+` WHERE is_applied`).Scan(&v)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42P01" { // no such table
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the version of the schema: %w", err)
	}
	return v, nil
}

// Check compares the database's schema with what this program needs. The error is one line
// with the remedy.
func Check(ctx context.Context, db Querier) error {
	have, err := Version(ctx, db)
	if err != nil {
		return err
	}
	switch need := Needed(); {
	case have == 0:
		return errors.New("the database has no schema yet: run `batchyard migrate up`")
	case have < need:
		return fmt.Errorf("the database's schema is version %d, this program needs %d: run `batchyard migrate up`", have, need)
	case have > need:
		return fmt.Errorf("the database's schema is version %d, this program knows %d: update batchyard", have, need)
	}
	return nil
}

func with(ctx context.Context, url string, do func(*goose.Provider) error) (err error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("reading the Postgres URL: %w; check postgres.url", err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return &unreachable.Error{Service: "Postgres", Addr: fmt.Sprintf("%s:%d", cfg.Host, cfg.Port), Setting: "postgres.url", Err: err}
	}
	sub, err := fs.Sub(files, "sql")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, sub,
		goose.WithTableName(table), goose.WithSessionLocker(locker{}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("reading the embedded migrations: %w", err)
	}
	if err := do(p); err != nil {
		return fmt.Errorf("migrating the database %s: %w", cfg.Database, err)
	}
	return nil
}

// locker waits for its turn in Postgres. The lock ends with the session, so a process that
// dies does not block others.
type locker struct{}

func (locker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(lockKey)); err != nil {
		return fmt.Errorf("waiting for another migration: %w", err)
	}
	return nil
}

func (locker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", int64(lockKey))
	return err
}
