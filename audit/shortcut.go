package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Large chunks are written by shortcuts, which are not always open:
//
//	            the sure way                    the shortcut           closed when
//	results     INSERT … ON CONFLICT …          COPY                   one of them was taken before: somebody sent a second
//	                                                                   result, or the records are read once more
//	states      INSERT … ON CONFLICT …          COPY, of tasks that    something of one of them was recorded before, which
//	                                            begin and end in it    is rare: acceptance and result are of this chunk
//	audit rows  COPY audit_log, where Postgres  COPY the partition     it was dropped or detached
//	            looks for each row's partition
//
// When a shortcut turns out to be closed, the transaction is given up, and the chunk
// and those after it are written the sure way for a while. Only the sure way decides
// what Postgres refuses: a table that somebody has changed may take by the one what it
// does not take by the other.
const (
	copyFrom   = 64 // results, or states: fewer are not worth a round trip of their own
	careChunks = 64 // chunks that are written the sure way afterwards
)

// errClosed says that a chunk is to be written the sure way.
var errClosed = errors.New("the chunk cannot be written by a shortcut")

// copyIn copies rows into a table by a shortcut. On errClosed the transaction is of
// no use any more.
func copyIn(ctx context.Context, tx pgx.Tx, sql string, rows int, b []byte) error {
	done, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(b), sql)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && !passing(pg) {
		return fmt.Errorf("%w: %w", errClosed, err)
	}
	if err != nil {
		return err
	}
	if done.RowsAffected() != int64(rows) { // somebody's trigger; which of them is not told
		return errClosed
	}
	return nil
}

// passing reports whether an error is of the moment and says nothing of what was
// written: a lock or a deadlock, no space, a server that stops, its system.
func passing(pg *pgconn.PgError) bool {
	if len(pg.Code) != 5 {
		return false
	}
	switch pg.Code[:2] {
	case "40", "53", "55", "57", "58":
		return true
	}
	return false
}

// lockSQL locks audit_log as a COPY into it does. Without, a writer would lock
// partitions in an order of its own, and wait in a circle for a migration that has locked
// the log and then its partitions; and who may not add to the log could to its days.
const lockSQL = `LOCK TABLE ONLY audit_log IN ROW EXCLUSIVE MODE`

// copyRows copies the rows that were gathered.
func (d *days) copyRows(ctx context.Context, tx pgx.Tx) error {
	if all := d.tables[auditLog]; all != nil && all.rows > 0 {
		if _, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(all.endCopy()), copyInto(auditLog)); err != nil {
			return fmt.Errorf("writing %d audit rows: %w", all.rows, err)
		}
	}
	for _, table := range d.shortcuts() {
		rows := d.tables[table]
		if err := copyIn(ctx, tx, copyInto(table), rows.rows, rows.endCopy()); err != nil {
			if errors.Is(err, errClosed) {
				d.doubt = table
			}
			return fmt.Errorf("writing audit rows to %s: %w", table, err)
		}
	}
	return nil
}

// shortcuts are the partitions that take rows of the present chunk.
func (d *days) shortcuts() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(d.tables)), func(table string) bool {
		return table == auditLog || d.tables[table].rows == 0
	})
}

// attachedSQL finds those of the given tables that are no partitions of audit_log.
const attachedSQL = `
SELECT name FROM unnest($1::text[]) AS t (name) WHERE NOT EXISTS (
	SELECT FROM pg_inherits WHERE inhrelid = to_regclass(name) AND inhparent = to_regclass('audit_log') AND NOT inhdetachpending)`

// queueCheck adds to a batch the question whether the tables that took rows are
// partitions. It comes after the COPY: whoever wants to detach, drop or rename one of
// them waits from then on until we have committed.
func (d *days) queueCheck(b *pgx.Batch) {
	tables := d.shortcuts()
	if len(tables) == 0 {
		return
	}
	b.Queue(attachedSQL, tables).Query(func(rows pgx.Rows) error {
		foreign, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(foreign) == 0 {
			return err
		}
		for _, table := range foreign {
			d.close(table)
		}
		return fmt.Errorf("%w: %v are no partitions of audit_log any more", errClosed, foreign)
	})
}
