package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
)

// definition is how to drop and recreate an index or a primary key.
type definition struct{ Name, Drop, Make string }

const definitionsSQL = `
SELECT c.relname AS name,
	CASE WHEN k.oid IS NULL THEN format('DROP INDEX %I', c.relname) ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, k.conname) END AS drop,
	CASE WHEN k.oid IS NULL THEN replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ') ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) END AS make
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype = 'p'
WHERE i.indrelid IN ('audit_log'::regclass, 'tasks'::regclass, 'results'::regclass, 'callbacks'::regclass)
ORDER BY i.indrelid, k.oid IS NULL, c.relname`

// dropIndexes drops the indexes of the large tables, because loading is several
// times faster without them. It returns how to recreate them.
func dropIndexes(ctx context.Context, conn *pgx.Conn) ([]definition, error) {
	rows, err := conn.Query(ctx, definitionsSQL)
	if err != nil {
		return nil, fmt.Errorf("reading the indexes: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[definition])
	if err != nil {
		return nil, fmt.Errorf("reading the indexes: %w", err)
	}
	for _, d := range all {
		if _, err := conn.Exec(ctx, d.Drop); err != nil {
			return nil, fmt.Errorf("dropping index %s: %w", d.Name, err)
		}
	}
	return all, nil
}

// makeIndexes recreates the indexes and analyzes the tables. If the process dies
// before that, the database is unusable: drop it and start over.
func makeIndexes(ctx context.Context, conn *pgx.Conn, all []definition, out io.Writer) error {
	for _, d := range all {
		start := time.Now()
		if _, err := conn.Exec(ctx, d.Make); err != nil {
			return fmt.Errorf("creating index %s: %w", d.Name, err)
		}
		fmt.Fprintf(out, "index %s: %s\n", d.Name, time.Since(start).Round(time.Millisecond))
	}
	for _, sql := range []string{"SELECT batchyard_compact_rollups('2000-01-01')", "SELECT batchyard_compact_rollups('2000-01-01')", "ANALYZE audit_log",
		"VACUUM (ANALYZE) tasks, results, jobs, callbacks",
		// A whole month was aggregated at once, which a recorder does hour by hour.
		"VACUUM (FULL, ANALYZE) rollup_usage, rollup_latency, rollup_attempts, rollup_batches, rollup_submissions"} {
		start := time.Now()
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("running %s: %w", sql, err)
		}
		fmt.Fprintf(out, "%s: %s\n", sql, time.Since(start).Round(time.Millisecond))
	}
	return nil
}

const sizesSQL = `
SELECT coalesce(p.relname, c.relname), sum(c.reltuples)::bigint, pg_size_pretty(sum(pg_table_size(c.oid))), pg_size_pretty(sum(pg_indexes_size(c.oid)))
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.reltuples > 0 GROUP BY 1 ORDER BY sum(pg_total_relation_size(c.oid)) DESC`

// sizes prints the size of each table.
func sizes(ctx context.Context, conn *pgx.Conn, out io.Writer) error {
	rows, err := conn.Query(ctx, sizesSQL)
	if err != nil {
		return fmt.Errorf("reading the sizes of the tables: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, table, indexes string
		var n int64
		if err := rows.Scan(&name, &n, &table, &indexes); err != nil {
			return fmt.Errorf("reading the sizes of the tables: %w", err)
		}
		fmt.Fprintf(out, "%-20s %12d rows  %10s  indexes %10s\n", name, n, table, indexes)
	}
	return rows.Err()
}
