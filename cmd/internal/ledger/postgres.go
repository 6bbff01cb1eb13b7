package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

// snapshot runs fn in one read-only snapshot of the database. It delays only vacuuming.
func (l *look) snapshot(ctx context.Context, fn func(pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The role may have a timeout for its usual queries, but this reads everything.
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
			return fmt.Errorf("lifting the statement timeout of Postgres: %w", err)
		}
		return fn(tx)
	})
	return err
}

// readTables reads the tables about tasks.
func (l *look) readTables(ctx context.Context) error {
	l.o.Progress("reading results and states from Postgres")
	return l.snapshot(ctx, func(tx pgx.Tx) (err error) {
		l.r.At = time.Now().UTC()
		if l.recorded, err = recordedOffsets(ctx, tx); err != nil {
			return err
		}
		if err := l.readBreaks(ctx, tx); err != nil {
			return err
		}
		var dropped *time.Time
		err = rowsOf(ctx, tx, "the days that audit.retention dropped", `SELECT max(day) + 1 FROM audit_dropped`, nil, func(rows pgx.Rows) error { return rows.Scan(&dropped) })
		if err != nil {
			return err
		}
		if l.o.Retention > 0 {
			l.cut = l.r.At.Add(-l.o.Retention).Truncate(24 * time.Hour).Add(24 * time.Hour)
		}
		if dropped != nil && dropped.After(l.cut) {
			l.cut = *dropped
		}
		if err := l.readResults(ctx, tx); err != nil {
			return err
		}
		if err := l.readStates(ctx, tx); err != nil {
			return err
		}
		return l.readCallbacks(ctx, tx)
	})
}

func (l *look) readResults(ctx context.Context, tx pgx.Tx) error {
	return rowsOf(ctx, tx, "results", `SELECT tenant, task_id, generation, state, attempt, finished_at, submitted_at, recorded_at, callback_url IS NOT NULL, coalesce(priority, '') FROM results`, nil,
		func(rows pgx.Rows) error {
			var k task.Run
			var state task.State
			var attempt uint32
			var finished, recorded time.Time
			var submitted *time.Time
			var callback bool
			var priority task.Priority
			if err := rows.Scan(&k.Tenant, &k.ID, &k.Generation, &state, &attempt, &finished, &submitted, &recorded, &callback, &priority); err != nil {
				return err
			}
			f := fact{kind: factResult, end: end{stateIndex(state), attempt, finished.UnixMicro()}, topic: backIndex(priority), taken: recorded.UnixMicro()}
			if submitted != nil {
				f.since = submitted.UnixMicro()
			}
			if callback {
				f.flags = flagCallback
			}
			return l.facts.add(k, f)
		})
}

func (l *look) readStates(ctx context.Context, tx pgx.Tx) error {
	return rowsOf(ctx, tx, "states", `
		SELECT tenant, task_id, generation, state, CASE WHEN known_from > 0 THEN submitted_at END, updated_at, coalesce(priority, '') FROM tasks
		UNION ALL -- tasks has only the last generation: the result of an older one is its state
		SELECT r.tenant, r.task_id, r.generation, r.state, NULL, r.finished_at, '' FROM results r
		JOIN tasks t ON t.task_id = r.task_id AND t.tenant = r.tenant AND r.generation < t.generation`, nil,
		func(rows pgx.Rows) error {
			var k task.Run
			var state task.State
			var submitted *time.Time
			var updated time.Time
			var priority task.Priority
			if err := rows.Scan(&k.Tenant, &k.ID, &k.Generation, &state, &submitted, &updated, &priority); err != nil {
				return err
			}
			f := fact{kind: factState, end: end{state: stateIndex(state)}, topic: backIndex(priority), taken: updated.UnixMicro()}
			if submitted != nil {
				f.since = submitted.UnixMicro()
			}
			return l.facts.add(k, f)
		})
}

func (l *look) readCallbacks(ctx context.Context, tx pgx.Tx) error {
	return rowsOf(ctx, tx, "callbacks", `SELECT tenant, task_id, generation, callback_id FROM callbacks WHERE task_id IS NOT NULL`, nil, func(rows pgx.Rows) error {
		var k task.Run
		var id string
		if err := rows.Scan(&k.Tenant, &k.ID, &k.Generation, &id); err != nil {
			return err
		}
		f := fact{kind: factCallback}
		if id != k.CallbackID() {
			f.flags = flagOddID
		}
		return l.facts.add(k, f)
	})
}

// readRows reads which audit rows exist. Its snapshot is later than that of the tables, but
// rows of records below the offsets read then no longer change.
func (l *look) readRows(ctx context.Context) error {
	l.o.Progress("reading the positions of audit rows from Postgres")
	return l.snapshot(ctx, func(tx pgx.Tx) error {
		err := rowsOf(ctx, tx, "audit rows", `SELECT src_topic, src_partition, src_offset, src_index, coalesce(chain_seq, 0) FROM audit_log WHERE time >= $1`, []any{l.rowsFrom()},
			func(rows pgx.Rows) error {
				var topic string
				var partition int
				var offset, seq int64
				var index uint32
				if err := rows.Scan(&topic, &partition, &offset, &index, &seq); err != nil {
					return err
				}
				i, ok := topicIndex(topic)
				if seq < l.replaced[audit.PartitionOf(topic, partition)] {
					return nil // it is of the topic that was there before
				}
				if !ok || offset < l.firstOf(topic, partition) || offset >= l.recorded.of(topic, partition) {
					return nil // retention removed its record, or it was written during the check
				}
				return l.facts.note(note{where: position{i, uint32(partition), uint64(offset)}, kind: noteRow, n: index})
			})
		if err != nil {
			return err
		}
		l.o.Progress("counting the rows of the hash chains")
		return l.checkChains(ctx, tx)
	})
}

// rowsFrom returns a time before which no expected audit row lies.
func (l *look) rowsFrom() time.Time {
	from := l.earliest
	if from.IsZero() {
		from = l.r.At // without records, no rows are expected
	}
	if from.Before(l.cut) {
		return l.cut
	}
	return from
}

const chainsSQL = `
WITH kept AS (
	SELECT src_topic AS topic, src_partition AS partition, count(*) AS n, max(chain_seq) AS last
	FROM audit_log WHERE chain_seq IS NOT NULL GROUP BY 1, 2
), gone AS (
	SELECT topic, partition, sum(last_seq - first_seq + 1)::bigint AS n, max(last_seq) AS last FROM audit_dropped GROUP BY 1, 2
)
SELECT topic, partition, coalesce(c.rows, 0), coalesce(kept.n, 0), coalesce(gone.n, 0), greatest(kept.last, gone.last, 0)
FROM audit_chains c FULL JOIN kept USING (topic, partition) LEFT JOIN gone USING (topic, partition)
ORDER BY 1, 2`

// checkChains compares the row counts in audit_chains with the rows in audit_log.
func (l *look) checkChains(ctx context.Context, tx pgx.Tx) error {
	return rowsOf(ctx, tx, "the chains of the audit log", chainsSQL, nil, func(rows pgx.Rows) error {
		var topic string
		var partition int
		var said, kept, gone, last int64
		if err := rows.Scan(&topic, &partition, &said, &kept, &gone, &last); err != nil {
			return err
		}
		if said != kept+gone || said != last {
			l.r.wrong(l.before, Problem{Kind: ChainRows, At: fmt.Sprintf("%s/%d", topic, partition),
				What: fmt.Sprintf("audit_chains says %d rows; audit_log has %d, retention dropped %d, and the last has number %d", said, kept, gone, last)})
		}
		return nil
	})
}
