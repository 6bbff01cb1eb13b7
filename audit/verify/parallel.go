package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/internal/pg"
)

// sessionSettings make a session read in the order of the disk: one process, from the first page on.
var sessionSettings = []string{
	"SET LOCAL synchronize_seqscans = off", "SET LOCAL max_parallel_workers_per_gather = 0",
	"SET LOCAL enable_indexscan = off", "SET LOCAL enable_bitmapscan = off", "SET LOCAL standard_conforming_strings = on",
	"SET LOCAL idle_in_transaction_session_timeout = 0", "SET LOCAL statement_timeout = 0", "SET LOCAL client_encoding = 'UTF8'",
	"SET LOCAL timezone = 'UTC'", "SET LOCAL row_security = off",
}

func configure(ctx context.Context, tx pgx.Tx) error {
	for _, set := range sessionSettings {
		if _, err := tx.Exec(ctx, set); err != nil {
			return fmt.Errorf("preparing the session: %s: %w", set, err)
		}
	}
	return nil
}

// pagesAtOnce is the size of the parts in which a table is read, 128 MB: large enough that reading one is most of the
// work, and small enough that all readers end at about the same time.
const pagesAtOnce = 16 << 10

// job is something that a reader does with its connection.
type job func(ctx context.Context, conn *pgx.Conn) error

// parts returns conditions that divide a table of so many pages.
func parts(pages int64) (wheres []string) {
	for from := int64(0); ; from += pagesAtOnce {
		where := fmt.Sprintf("ctid >= '(%d,0)'::tid", from)
		if from+pagesAtOnce >= pages { // also what was added since
			return append(wheres, where)
		}
		wheres = append(wheres, where+fmt.Sprintf(" AND ctid < '(%d,0)'::tid", from+pagesAtOnce))
	}
}

// readAll reads the partitions that are to be verified.
func (v *verifier) readAll(ctx context.Context, tx pgx.Tx) error {
	var server int
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&server); err != nil {
		return fmt.Errorf("reading the version of Postgres: %w", err)
	}
	var jobs []job
	for _, p := range v.newer {
		wheres := []string{""}
		if p.direct && p.size > pagesAtOnce && server >= 140000 { // older ones read the whole table for each part
			wheres = parts(p.size)
		}
		for _, where := range wheres {
			jobs = append(jobs, func(ctx context.Context, conn *pgx.Conn) error { return v.read(ctx, conn, p, where) })
		}
	}
	return v.run(ctx, jobs)
}

// compareRows reads the other tables, and compares them with what the log says.
func (v *verifier) compareRows(ctx context.Context, tx pgx.Tx) error {
	var jobs []job
	for _, p := range v.tables.Passes(v.schema) {
		wheres := []string{""}
		var pages int64
		var server int
		err := tx.QueryRow(ctx, "SELECT pg_relation_size($1::regclass) / 8192, current_setting('server_version_num')::int", v.table(p.Table)).Scan(&pages, &server)
		if err != nil {
			return fmt.Errorf("reading the size of %s: %w", p.Table, err)
		}
		if pages > pagesAtOnce && server >= 140000 {
			wheres = parts(pages)
		}
		for _, where := range wheres {
			jobs = append(jobs, func(ctx context.Context, conn *pgx.Conn) error { return v.compareRowsOf(ctx, conn, &p, where) })
		}
	}
	return v.run(ctx, jobs)
}

func (v *verifier) compareRowsOf(ctx context.Context, conn *pgx.Conn, p *tables.Pass, where string) error {
	counter := v.tables.Counter()
	query, width := p.Query(where)
	err := copyrows.Read(ctx, conn.PgConn(), query, width, copyrows.Handler{Row: func(r *copyrows.Row) error {
		p.Take(v.tables, counter, r)
		return nil
	}})
	if err != nil {
		return fmt.Errorf("reading %s: %w", p.Table, err)
	}
	v.tables.Absorb(counter)
	return nil
}

// run does jobs, as many at the same time as there are connections. It opens the others for the first several jobs.
func (v *verifier) run(ctx context.Context, jobs []job) error {
	if len(jobs) > 1 && v.snapshot != "" && v.others == nil {
		if err := v.openOthers(ctx); err != nil {
			return err
		}
	}
	next := make(chan job, len(jobs))
	for _, j := range jobs {
		next <- j
	}
	close(next)
	// After an error the others go on: a connection whose COPY is cancelled cannot be used for anything else.
	var group errgroup.Group
	for _, conn := range append([]*pgx.Conn{v.conn}, v.others...) {
		group.Go(func() error {
			for j := range next {
				if err := j(ctx, conn); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// exportSnapshot lets other connections read in the same snapshot. It cannot be done later, in a savepoint.
func (v *verifier) exportSnapshot(ctx context.Context, tx pgx.Tx) error {
	if v.o.Readers < 2 {
		return nil
	}
	if err := tx.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&v.snapshot); err != nil {
		return fmt.Errorf("exporting the snapshot: %w", err)
	}
	return nil
}

// patience is how long to wait for a connection that others use; without it, fewer read at the same time.
const patience = 3 * time.Second

// openOthers opens the connections of the other readers, in the snapshot that was exported. closeOthers gives them back.
func (v *verifier) openOthers(ctx context.Context) error {
	for len(v.others) < v.o.Readers-1 {
		waiting, cancel := context.WithTimeout(ctx, patience)
		conn, err := v.pool.Acquire(waiting)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("connecting to Postgres: %w", err)
		}
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			conn.Release()
			return fmt.Errorf("beginning a transaction: %w", err)
		}
		v.closing = append(v.closing, func() {
			pg.Rollback(ctx, tx)
			conn.Release()
		})
		if _, err := tx.Exec(ctx, "SET TRANSACTION SNAPSHOT '"+v.snapshot+"'"); err != nil {
			return fmt.Errorf("taking the snapshot %s: %w", v.snapshot, err)
		}
		if err := configure(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)"); err != nil {
			return fmt.Errorf("preparing the session: %w", err)
		}
		v.others = append(v.others, conn.Conn())
	}
	return nil
}

func (v *verifier) closeOthers() {
	for _, c := range v.closing {
		c()
	}
	v.others, v.closing = nil, nil
}
