package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/internal/pg"
)

// Mode fast writes large chunks by shortcuts, which are sometimes closed:
//
//	            mode safe                       shortcut               closed when
//	results     INSERT … ON CONFLICT …          COPY                   a task already has a result: another one was sent,
//	                                                                   or the records are read again
//	states      INSERT … ON CONFLICT …          COPY, of tasks that    something about one of them was recorded before, which is
//	                                            begin and end in it    rare if acceptance and result are in this chunk
//	audit rows  COPY audit_log, where Postgres  COPY the partition     it was dropped or detached
//	            looks for each row's partition
//
// If a shortcut turns out to be closed, the transaction is rolled back, and this chunk and those
// after it are written in mode safe for a while. Only mode safe decides what Postgres refuses: a
// table that was modified may accept a row by one path and reject it by the other.
const (
	minRowsForCopy = 64 // results, or states; fewer are not worth a round trip
	slowPathChunks = 64 // chunks written in mode safe after a shortcut was closed
)

// errShortcutClosed says that a chunk has to be written in mode safe.
var errShortcutClosed = errors.New("the chunk cannot be written by a shortcut")

// copyByShortcut copies n rows, encoded in b, to a table. After errShortcutClosed the transaction
// is aborted.
func copyByShortcut(ctx context.Context, tx pgx.Tx, sql string, n int, b []byte) error {
	done, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(b), sql)
	if pg.Code(err) != "" && !pg.IsTransient(err) {
		return fmt.Errorf("%w: %w", errShortcutClosed, err)
	}
	if err != nil {
		return err
	}
	if done.RowsAffected() != int64(n) { // a trigger dropped rows, and Postgres does not say which
		return errShortcutClosed
	}
	return nil
}
