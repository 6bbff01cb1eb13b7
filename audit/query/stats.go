package query

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Stats is the size of the audit log and the progress of the recorder. Where counting would read
// every row, numbers are the estimates of Postgres.
type Stats struct {
	Rows       int64          `json:"rows"` // estimate
	Bytes      int64          `json:"bytes"`
	Oldest     *time.Time     `json:"oldest,omitempty"`
	Newest     *time.Time     `json:"newest,omitempty"`
	InDefault  int64          `json:"rows_in_default"` // exact; it should be 0
	Partitions []PartitionRow `json:"partitions"`
	Actions    []ActionRow    `json:"actions"`
	Chains     []ChainRow     `json:"chains"`
	Dropped    []DroppedRow   `json:"dropped,omitempty"`
}

// PartitionRow is one day of the log.
type PartitionRow struct {
	Name  string `json:"name"`
	Day   string `json:"day,omitempty"` // empty for the default partition
	Rows  int64  `json:"rows"`          // estimate; -1: Postgres has not analyzed it yet
	Bytes int64  `json:"bytes"`         // with indexes

	from time.Time // beginning of the day
}

// ActionRow is how often an action had an outcome on a day.
type ActionRow struct {
	Day     string `json:"day"`
	Action  string `json:"action"`
	Outcome string `json:"outcome"`
	Rows    int64  `json:"rows"` // estimate
}

// ChainRow is a chain, and how far its partition is recorded.
type ChainRow struct {
	Topic     string     `json:"topic"`
	Partition int        `json:"partition"`
	Rows      int64      `json:"rows"`
	LastRow   *time.Time `json:"last_row,omitempty"`
	Next      int64      `json:"next_offset"`
	Epoch     int64      `json:"epoch"`
	Owner     string     `json:"owner,omitempty"`
	UpdatedAt time.Time  `json:"updated_at"`
	End       *int64     `json:"end_offset,omitempty"` // of the partition in Kafka; unknown without Kafka
	Lag       *int64     `json:"lag,omitempty"`        // number of records that are not recorded yet
}

// DroppedRow is a day that the retention has dropped.
type DroppedRow struct {
	Day  string `json:"day"`
	Rows int64  `json:"rows"`
}

// partitionSizesSQL estimates rows as the planner does: as many per page as when the partition was
// last analyzed, on as many pages as there are now; -1 if it never was.
const partitionSizesSQL = `
SELECT c.relname, coalesce(substring(c.relname FROM '^audit_log_([0-9]{8})$'), ''),
	CASE WHEN c.relpages > 0 AND c.reltuples > 0 THEN (c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::bigint))::bigint
	     WHEN pg_relation_size(c.oid) = 0 THEN 0 ELSE -1 END, pg_total_relation_size(c.oid)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit_log'::regclass ORDER BY 1`

const statsChainsSQL = `
SELECT topic, partition, coalesce(c.rows, 0), c.updated_at, coalesce(o.next_offset, -1), coalesce(o.epoch, 0), coalesce(o.owner, ''),
	coalesce(o.updated_at, c.updated_at)
FROM audit_chains c FULL JOIN stream_offsets o USING (topic, partition) ORDER BY 1, 2`

const droppedSQL = `SELECT to_char(day, 'YYYY-MM-DD'), sum(last_seq - first_seq + 1)::bigint FROM audit_dropped GROUP BY day ORDER BY day`

// samplePages is the number of pages of a partition that are read to estimate its actions.
const samplePages = 400

// Stats measures the log without reading it: the catalog, the chains, and a sample of the pages of
// each of the last days.
func (l *Reader) Stats(ctx context.Context, days int) (*Stats, error) {
	s := &Stats{Partitions: []PartitionRow{}, Actions: []ActionRow{}, Chains: []ChainRow{}}
	err := l.snapshot(ctx, func(tx pgx.Tx) (err error) {
		if s.Partitions, err = collect(ctx, tx, partitionSizesSQL, func(r pgx.CollectableRow) (p PartitionRow, err error) {
			err = r.Scan(&p.Name, &p.Day, &p.Rows, &p.Bytes)
			if at, perr := time.Parse("20060102", p.Day); perr == nil {
				p.Day, p.from = at.Format(time.DateOnly), at
			}
			return p, err
		}); err != nil {
			return err
		}
		if s.Chains, err = collect(ctx, tx, statsChainsSQL, func(r pgx.CollectableRow) (c ChainRow, err error) {
			return c, r.Scan(&c.Topic, &c.Partition, &c.Rows, &c.LastRow, &c.Next, &c.Epoch, &c.Owner, &c.UpdatedAt)
		}); err != nil {
			return err
		}
		if s.Dropped, err = collect(ctx, tx, droppedSQL, func(r pgx.CollectableRow) (d DroppedRow, err error) {
			return d, r.Scan(&d.Day, &d.Rows)
		}); err != nil {
			return err
		}
		return s.sampleDays(ctx, tx, days)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func collect[T any](ctx context.Context, tx pgx.Tx, sql string, fn pgx.RowToFunc[T], args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, fn)
}

// sampleDays finds the ends of the log and estimates its actions.
func (s *Stats) sampleDays(ctx context.Context, tx pgx.Tx, days int) error {
	var filled []*PartitionRow
	if err := s.countDefault(ctx, tx); err != nil {
		return err
	}
	for i := range s.Partitions {
		p := &s.Partitions[i]
		s.Rows += max(p.Rows, 0)
		s.Bytes += p.Bytes
		if p.Day == "" {
			continue
		}
		var some bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_log WHERE time >= $1 AND time < $2)", p.from, p.from.Add(maxSpan)).Scan(&some); err != nil {
			return err
		}
		if some {
			filled = append(filled, p)
		}
	}
	if len(filled) == 0 {
		return nil
	}
	// The ends are in the first and the last day, so at most these two are read.
	for _, e := range []struct {
		p     *PartitionRow
		which string
		to    **time.Time
	}{{filled[0], "min", &s.Oldest}, {filled[len(filled)-1], "max", &s.Newest}} {
		if err := s.edge(ctx, tx, e.p.from, e.which, e.to); err != nil {
			return err
		}
	}
	for _, p := range filled[max(0, len(filled)-days):] {
		if err := s.sample(ctx, tx, p); err != nil {
			return err
		}
	}
	return nil
}

// edge finds the first or the last time of a day, which in SQL is min or max, part by part: thanks
// to the BRIN index it is cheap to learn that a part has no rows, and one part is read completely.
func (s *Stats) edge(ctx context.Context, tx pgx.Tx, at time.Time, which string, to **time.Time) error {
	for i := range 24 * 60 / edgeMinutes {
		from := at.Add(time.Duration(i) * edgeMinutes * time.Minute)
		if which == "max" {
			from = at.Add(maxSpan - time.Duration(i+1)*edgeMinutes*time.Minute)
		}
		var t *time.Time
		err := tx.QueryRow(ctx, "SELECT "+which+"(time) FROM audit_log WHERE time >= $1 AND time < $2", from, from.Add(edgeMinutes*time.Minute)).Scan(&t)
		if err != nil {
			return err
		}
		if t != nil {
			utc := t.UTC()
			*to = &utc
			return nil
		}
	}
	return nil
}

// edgeMinutes is how much of a day is read at once for its first or last row.
const edgeMinutes = 10

// sample estimates how often each action is among the rows of a day: from some pages, or from all
// if there are few.
func (s *Stats) sample(ctx context.Context, tx pgx.Tx, p *PartitionRow) error {
	var pages float64
	if err := tx.QueryRow(ctx, "SELECT greatest(pg_relation_size(quote_ident($1)::regclass) / current_setting('block_size')::bigint, 1)::float8", p.Name).Scan(&pages); err != nil {
		return err
	}
	percent := min(100, 100*samplePages/pages)
	rows, err := collect(ctx, tx, fmt.Sprintf(`SELECT action, outcome, count(*) FROM audit_log TABLESAMPLE SYSTEM (%f) REPEATABLE (1)
		WHERE time >= $1 AND time < $2 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2`, percent),
		func(r pgx.CollectableRow) (a ActionRow, err error) { return a, r.Scan(&a.Action, &a.Outcome, &a.Rows) }, p.from, p.from.Add(maxSpan))
	if err != nil {
		return err
	}
	var seen int64
	for _, a := range rows {
		seen += a.Rows
	}
	scale := 100 / percent
	if percent < 100 && p.Rows > 0 && seen > 0 {
		scale = float64(p.Rows) / float64(seen)
	}
	if percent == 100 { // every row was read
		s.Rows += seen - max(p.Rows, 0)
		p.Rows = seen
	} else if p.Rows < 0 {
		p.Rows = int64(float64(seen) * scale)
		s.Rows += p.Rows
	}
	for _, a := range rows {
		a.Day, a.Rows = p.Day, int64(float64(a.Rows)*scale+0.5)
		s.Actions = append(s.Actions, a)
	}
	return nil
}

// countDefault counts the rows of days that have no partition. It does not read the default
// partition by its name, which may not be allowed to those who may read the log as a whole.
func (s *Stats) countDefault(ctx context.Context, tx pgx.Tx) error {
	var next time.Time
	count := func(where string, args ...any) error {
		var n int64
		err := tx.QueryRow(ctx, "SELECT count(*) FROM audit_log WHERE "+where, args...).Scan(&n)
		s.InDefault += n
		return err
	}
	for _, p := range s.Partitions {
		var err error
		switch {
		case p.Day == "":
			continue
		case next.IsZero():
			err = count("time < $1", p.from)
		case p.from.After(next):
			err = count("time >= $1 AND time < $2", next, p.from)
		}
		if err != nil {
			return err
		}
		next = p.from.Add(maxSpan)
	}
	if next.IsZero() {
		return count("true")
	}
	return count("time >= $1", next)
}
