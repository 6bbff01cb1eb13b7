package catalog

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	// sampledPages bounds the pages of a table whose rows are looked for in an index, 8 MB.
	sampledPages = 1000
	// sampledPartitions is the number of partitions of the log, the newest, that are sampled.
	sampledPartitions = 4
)

// The tables are verified in the order of the disk, and people read them by indexes. Someone with the rights of a superuser can
// keep rows out of an index. Comparing an index with its table is for other tools; this looks up the rows of random pages, and
// of small tables all.

// indexed is a table with an index by which people look for its rows.
type indexed struct {
	table, index string // as in FROM, and as a regclass
	columns      []string
	where        string // of the index
}

// sampleSQL looks up sampled rows in the index, by what the index has, and then by their places.
const sampleSQL = `SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM ONLY %[1]s x WHERE %[2]s AND x.ctid = s.ctid))
FROM (SELECT ctid, %[3]s FROM ONLY %[1]s TABLESAMPLE SYSTEM (%[4]g) WHERE %[5]s OFFSET 0) s`

// indexSQL returns the size of a table if its index can be used; otherwise nothing can be looked up in time.
const indexSQL = `SELECT pg_relation_size(x.indrelid) / 8192 FROM pg_index x WHERE x.indexrelid = $1::regclass AND x.indisvalid AND x.indisready AND x.indislive`

// partitionIndexSQL returns the index of a partition that is part of an index of the log.
const partitionIndexSQL = `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = $1::regclass AND x.indrelid = ($2::text[])[1]::regclass`

// SampleIndexes looks up rows of the tables, and of the newest partitions of the log (quoted), by their indexes. found says
// which indexes lack some.
func SampleIndexes(ctx context.Context, tx pgx.Tx, schema string, partitions []string) (found []string, err error) {
	table := func(name string) string { return pgx.Identifier{schema, name}.Sanitize() }
	all := []indexed{
		{table("results"), table("results_pkey"), []string{"tenant", "task_id", "generation"}, ""},
		{table("tasks"), table("tasks_pkey"), []string{"tenant", "task_id"}, ""},
		{table("jobs"), table("jobs_pkey"), []string{"tenant", "job_id"}, ""},
		{table("callbacks"), table("callbacks_pkey"), []string{"callback_id", "tenant"}, ""},
	}
	for _, p := range partitions[:min(len(partitions), sampledPartitions)] {
		indexes, err := list(ctx, tx, partitionIndexSQL, table("audit_log_task"), []string{p})
		if err != nil {
			return nil, err
		}
		for _, i := range indexes {
			all = append(all, indexed{p, i, []string{"task_id", "tenant"}, "task_id IS NOT NULL"})
		}
	}
	for _, set := range []string{"enable_indexscan = on", "enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off", "enable_mergejoin = off", "enable_tidscan = off", "jit = off", "statement_timeout = '60s'"} {
		if _, err := tx.Exec(ctx, "SET LOCAL "+set); err != nil {
			return nil, fmt.Errorf("preparing to look up rows: %w", err)
		}
	}
	for _, i := range all {
		lacks, err := i.sample(ctx, tx)
		if err != nil {
			return nil, err
		}
		if lacks != "" {
			found = append(found, lacks)
		}
	}
	for _, set := range []string{"enable_seqscan = on", "enable_hashjoin = on", "enable_mergejoin = on", "statement_timeout = 0"} {
		if _, err := tx.Exec(ctx, "SET LOCAL "+set); err != nil {
			return nil, fmt.Errorf("preparing the session: %w", err)
		}
	}
	return found, nil
}

// sample says what the index lacks; empty: nothing.
func (i *indexed) sample(ctx context.Context, tx pgx.Tx) (lacks string, err error) {
	rows, err := tx.Query(ctx, indexSQL, i.index)
	if err != nil {
		return "", fmt.Errorf("looking for the index %s: %w", i.index, err)
	}
	sizes, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return "", fmt.Errorf("looking for the index %s: %w", i.index, err)
	}
	if len(sizes) == 0 {
		return "", nil // that is a finding already
	}
	percent, same, where := 100.0, []string{}, "true"
	if pages := sizes[0]; pages > sampledPages {
		percent = 100 * sampledPages / float64(pages)
	}
	if i.where != "" {
		where = i.where
	}
	for _, c := range i.columns {
		same = append(same, fmt.Sprintf("x.%[1]s = s.%[1]s", c))
	}
	if i.where != "" {
		same = append(same, "x."+i.where)
	}
	var looked, missed int64
	sql := fmt.Sprintf(sampleSQL, i.table, strings.Join(same, " AND "), strings.Join(i.columns, ", "), percent, where)
	if err := tx.QueryRow(ctx, sql).Scan(&looked, &missed); err != nil {
		return "", fmt.Errorf("looking up rows of %s: %w", i.table, err)
	}
	if missed > 0 {
		lacks = fmt.Sprintf("the index %s lacks %d of the %d rows of %s that were looked up by %s: queries that use it do not show them; REINDEX builds it again", i.index, missed, looked, i.table, strings.Join(i.columns, ", "))
	}
	return lacks, nil
}
