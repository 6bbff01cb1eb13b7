package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/catalog"
	"github.com/batchyard/batchyard/task"
)

// snapshot runs fn in one read-only snapshot of the database. It delays only vacuuming.
func (l *look) snapshot(ctx context.Context, fn func(pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The role may have a timeout for its usual queries, but this reads everything.
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
			return fmt.Errorf("lifting the statement timeout of Postgres: %w", err)
		}
		if err := l.fixSchema(ctx, tx); err != nil {
			return err
		}
		return fn(tx)
	})
	return err
}

// fixSchema makes all names of the transaction those of Postgres or of the schema that has the log: a
// search path may have others first. A second log in the database is a problem: people may read that one.
func (l *look) fixSchema(ctx context.Context, tx pgx.Tx) error {
	schema, err := catalog.Locate(ctx, tx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_catalog.set_config('search_path', $1, true)", "pg_catalog, "+pgx.Identifier{schema}.Sanitize()+", pg_temp"); err != nil {
		return fmt.Errorf("setting the search path to schema %s: %w", schema, err)
	}
	others, err := catalog.Shadows(ctx, tx, schema)
	if err != nil {
		return err
	}
	for _, what := range others {
		l.r.wrong(l.before, Problem{Kind: SchemaWrong, At: what, What: "another schema than " + schema + " has it too: a search path may show people that one"})
	}
	return nil
}

// readable is a time as the recorder writes it: others, such as infinity, become one that matches no
// record.
func readable(column string) string {
	return "CASE WHEN " + column + " BETWEEN '1970-01-01Z' AND '9999-01-01Z' THEN " + column + " ELSE '1970-01-01Z' END"
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
		err = rowsOf(ctx, tx, "the days that audit.retention dropped", `SELECT max(day) + 1 FROM audit_dropped WHERE day BETWEEN '1970-01-01' AND '9999-01-01'`, nil, func(rows pgx.Rows) error { return rows.Scan(&dropped) })
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
	return rowsOf(ctx, tx, "results", `SELECT coalesce(tenant, ''), coalesce(task_id, ''), coalesce(generation, -1), coalesce(state, ''), coalesce(attempt, -1) & 2147483647, `+readable("finished_at")+`,
		CASE WHEN submitted_at IS NOT NULL THEN `+readable("submitted_at")+` END, `+readable("recorded_at")+`, callback_url IS NOT NULL, coalesce(priority, '') FROM results`, nil,
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
		SELECT coalesce(tenant, ''), coalesce(task_id, ''), coalesce(generation, -1), coalesce(state, ''), CASE WHEN known_from > 0 THEN `+readable("submitted_at")+` END, `+readable("updated_at")+`, coalesce(priority, '') FROM tasks
		UNION ALL -- tasks has only the last generation: the result of an older one is its state
		SELECT r.tenant, r.task_id, r.generation, r.state, NULL, `+readable("r.finished_at")+`, '' FROM results r
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
	return rowsOf(ctx, tx, "callbacks", `SELECT coalesce(tenant, ''), task_id, coalesce(generation, -1), coalesce(callback_id, '') FROM callbacks WHERE task_id IS NOT NULL`, nil, func(rows pgx.Rows) error {
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
		err := rowsOf(ctx, tx, "audit rows", `SELECT coalesce(src_topic, ''), coalesce(src_partition, -1), coalesce(src_offset, -1), coalesce(src_index, -1), coalesce(chain_seq, 0) FROM audit_log WHERE (time >= $1 OR src_index < 0 OR src_offset < 0) AND action <> 'audit.rows_recorded'`, []any{l.rowsFrom()},
			func(rows pgx.Rows) error {
				var topic string
				var partition int
				var offset, seq int64
				var index int32
				if err := rows.Scan(&topic, &partition, &offset, &index, &seq); err != nil {
					return err
				}
				if partition < 0 || offset < 0 || index < 0 { // no record of Kafka has such a place
					l.r.wrong(l.before, Problem{Kind: EventStray, At: audit.PartitionOf(topic, partition).At(audit.Position{Offset: offset, Index: index}).String(),
						What: "an audit row, but no record has such a position: no recorder wrote it"})
					return nil
				}
				i, ok := topicIndex(topic)
				if seq < l.replaced[audit.PartitionOf(topic, partition)] {
					return nil // it is of the topic that was there before
				}
				if !ok || offset < l.firstOf(topic, partition) || offset >= l.recorded.of(topic, partition) {
					return nil // retention removed its record, or it was written during the check
				}
				return l.facts.note(note{where: position{i, uint32(partition), uint64(offset)}, kind: noteRow, n: uint32(index)}) //nolint:gosec // it is not negative
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
	SELECT topic, partition, least(sum(last_seq::numeric - first_seq + 1), 9223372036854775807)::bigint AS n, max(last_seq) AS last FROM audit_dropped GROUP BY 1, 2
)
SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(c.rows, 0), coalesce(kept.n, 0), coalesce(gone.n, 0), greatest(kept.last, gone.last, 0)
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
