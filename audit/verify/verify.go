// Package verify checks that the audit log in Postgres is what the recorders wrote: that no row was
// changed, removed, moved or added, and that no chain was rewritten after a checkpoint was signed. It
// only reads, and trusts nothing but the keys that checkpoints are signed with.
package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// Options say how much of the log to verify, and against what.
type Options struct {
	// Since leaves out the partitions of the days before it; zero: none.
	Since time.Time
	// Checkpoints are signed checkpoints to compare the chains with; nil: none.
	Checkpoints *Checkpoints
	// MaxSegments bounds the memory: the number of segments that the chains may be in while rows
	// are read in the order of the disk. 0: a million.
	MaxSegments int
}

// Progress is how far a verification has come.
type Progress struct {
	Rows  int64
	About int64 // number of rows that the database estimates; 0: unknown
}

// Run reads the audit log in one snapshot and checks that no row was changed, removed, moved or
// added since it was recorded. An error says that the log could not be read; what was found is in
// the report.
//
// Rows are read in the order of the disk, which is nearly that of the chains, so nothing is sorted,
// and memory is a few hundred bytes for each segment:
//
//	partition after partition ──COPY──▶ row ──▶ does its hash match its bytes?
//	                                     │
//	                                     ▼ prev_hash, row_hash
//	            audit_dropped ──▶ segments of chains: grow, meet, become one
//	                                     │
//	            stream_breaks ──▶ what recorders have explained, signed
//	             audit_chains ──▶ does each chain lead from its beginning to its end?
//	              checkpoints ──▶ is it the chain that was signed?
func Run(ctx context.Context, pool *pgxpool.Pool, o Options, progress func(Progress)) (*Report, error) {
	if o.MaxSegments == 0 {
		o.MaxSegments = 1 << 20
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	v := &verifier{o: o, progress: progress, chains: map[audit.TopicPartition]*chainCheck{}, noted: map[string]time.Time{}, announcedDrops: map[string]bool{}, report: &Report{Since: o.Since.UTC()}}
	for try := 0; ; try++ {
		err := v.inSnapshot(ctx, conn.Conn())
		if pg.Code(err) == pg.UndefinedTable && try < 3 && v.report.Rows == 0 {
			continue // a partition was dropped between listing and locking
		}
		if err != nil {
			return nil, fmt.Errorf("verifying the audit log: %w", err)
		}
		return v.report, nil
	}
}

// verifier is one verification.
type verifier struct {
	o        Options
	progress func(Progress)
	conn     *pgx.Conn
	chains   map[audit.TopicPartition]*chainCheck
	lastOf   *chainCheck // of the previous row
	segments int         // in all chains

	newer, older []partitionTable // to be read, and to be read if necessary, the newest first
	olderRead    int
	standby      bool
	about        int64

	unknown        []Finding // rows of chains that audit_chains does not have
	unknownCount   int64
	unchainedRow   *RowRef // the row written last of those without a hash and without a chain
	unchainedAt    int64   // when it was written
	suspects       []suspect
	gaps           []singleGap
	noted          map[string]time.Time // days that were dropped according to audit_dropped, and when at the latest
	announcedDrops map[string]bool      // resources of the events partition.dropped
	scratch        []byte
	parts          []byte
	report         *Report
}

// partitionTable is a partition of audit_log.
type partitionTable struct {
	name string
	day  time.Time // zero: the default partition

	// direct says that the login may read the partition by its name. The role batchyard_auditor may
	// read the whole table only.
	direct bool
}

// from returns a FROM clause for the rows of exactly this partition.
func (p partitionTable) from(where string) string {
	name := pgx.Identifier{p.name}.Sanitize()
	var from, own string
	switch {
	case p.direct:
		from = "ONLY " + name
	case !p.day.IsZero(): // the bounds of the partition, which select it alone
		from, own = "audit_log", fmt.Sprintf("time >= '%s' AND time < '%s'", p.day.Format(time.RFC3339), p.day.Add(audit.Day).Format(time.RFC3339))
	default:
		from, own = "audit_log", fmt.Sprintf("tableoid = '%s'::regclass", strings.ReplaceAll(name, "'", "''"))
	}
	switch {
	case own != "" && where != "":
		return from + " WHERE " + own + " AND (" + where + ")"
	case own+where != "":
		return from + " WHERE " + own + where
	}
	return from
}

const partitionsSQL = `
SELECT c.relname::text, c.reltuples::bigint, has_table_privilege(c.oid, 'SELECT') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit_log'::regclass ORDER BY c.relname`

func (v *verifier) list(ctx context.Context) ([]partitionTable, error) {
	rows, err := v.conn.Query(ctx, partitionsSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
	}
	defer rows.Close()
	var all []partitionTable
	v.about = 0
	for rows.Next() {
		var p partitionTable
		var about int64
		if err := rows.Scan(&p.name, &about, &p.direct); err != nil {
			return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
		}
		p.day, _ = time.Parse(audit.PartitionLayout, p.name) // zero for others, which are always read
		all = append(all, p)
		if about > 0 && !v.before(p) {
			v.about += about
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
	}
	return all, nil
}

// before reports whether a partition ends before the period that is to be verified.
func (v *verifier) before(p partitionTable) bool {
	return !p.day.IsZero() && !v.o.Since.IsZero() && !p.day.Add(audit.Day).After(v.o.Since)
}

// inSnapshot does everything in one transaction, which sees the log at one moment, whatever is
// written meanwhile.
func (v *verifier) inSnapshot(ctx context.Context, conn *pgx.Conn) error {
	v.conn = conn
	listed, err := v.list(ctx)
	if err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	defer pg.Rollback(ctx, tx)
	// The retention must not drop a partition meanwhile: the snapshot would not preserve it. The
	// locks come before the first query, which takes the snapshot. The default partition is never
	// dropped, and a lock on it would hold up the creation of others.
	var lock []string
	for _, p := range listed {
		if !p.direct {
			lock = []string{"audit_log"} // and with it all partitions
			break
		}
		if !p.day.IsZero() {
			lock = append(lock, "ONLY "+pgx.Identifier{p.name}.Sanitize())
		}
	}
	if len(lock) > 0 {
		if _, err := tx.Exec(ctx, "LOCK TABLE "+strings.Join(lock, ", ")+" IN ACCESS SHARE MODE"); err != nil {
			return fmt.Errorf("keeping partitions from being dropped meanwhile: %w", err)
		}
	}
	if err := v.prepare(ctx, tx); err != nil {
		return err
	}
	for _, p := range v.newer {
		if err := v.read(ctx, p, ""); err != nil {
			return err
		}
	}
	for _, p := range v.older {
		where := v.lackingRows()
		if where == "" {
			break
		}
		if err := v.read(ctx, p, where); err != nil {
			return err
		}
		v.olderRead++
	}
	return v.judge(ctx, tx)
}

// prepare configures the session, takes the snapshot, and reads from it what the rows are compared
// with.
func (v *verifier) prepare(ctx context.Context, tx pgx.Tx) error {
	// In the order of the disk: one process, from the first page on.
	for _, set := range []string{"SET LOCAL synchronize_seqscans = off", "SET LOCAL max_parallel_workers_per_gather = 0",
		"SET LOCAL enable_indexscan = off", "SET LOCAL enable_bitmapscan = off", "SET LOCAL standard_conforming_strings = on",
		"SET LOCAL idle_in_transaction_session_timeout = 0", "SET LOCAL statement_timeout = 0", "SET LOCAL client_encoding = 'UTF8'"} {
		if _, err := tx.Exec(ctx, set); err != nil {
			return fmt.Errorf("preparing the session: %s: %w", set, err)
		}
	}
	if err := tx.QueryRow(ctx, "SELECT now(), pg_is_in_recovery()").Scan(&v.report.Time, &v.standby); err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	v.report.Time = v.report.Time.UTC()
	all, err := v.list(ctx)
	if err != nil {
		return err
	}
	v.newer, v.older = nil, nil
	for _, p := range all {
		if v.before(p) {
			v.older = append(v.older, p)
		} else {
			v.newer = append(v.newer, p)
		}
	}
	slices.Reverse(v.older)
	if err := v.readEnds(ctx, tx); err != nil {
		return err
	}
	if err := v.readBreaks(ctx, tx); err != nil {
		return err
	}
	return v.readDropped(ctx, tx)
}

// maxChains bounds the chains: usually one for each partition of two topics.
const maxChains = 1 << 16

func (v *verifier) readEnds(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, "SELECT topic, partition, rows, hash, updated_at FROM audit_chains ORDER BY topic, partition LIMIT $1", maxChains+1)
	if err != nil {
		return fmt.Errorf("reading audit_chains: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		c := &chainCheck{}
		var sum []byte
		if err := rows.Scan(&c.at.Topic, &c.at.Partition, &c.end.Rows, &sum, &c.updated); err != nil {
			return fmt.Errorf("reading audit_chains: %w", err)
		}
		if len(sum) == len(c.end.Hash) {
			c.end.Hash = audit.Hash(sum)
		} // else it stays zero, which matches no row
		c.byEnd, c.byStart = map[link]*segment{}, map[link]*segment{}
		c.points = v.o.Checkpoints.pointsOf(c.at)
		v.chains[c.at] = c
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading audit_chains: %w", err)
	}
	if len(v.chains) > maxChains {
		return fmt.Errorf("audit_chains has more than %d chains, more than any cluster has partitions", maxChains)
	}
	return nil
}

// maxClaims bounds the days that are looked for among the events.
const maxClaims = 1 << 16

func (v *verifier) noteDrop(day string, at time.Time) {
	if at.After(v.noted[day]) && len(v.noted) < maxClaims {
		v.noted[day] = at
	}
}

// judgeDropped compares audit_dropped, which anyone who can write to the database can forge, with
// the events of the log. Differences are notes, not findings: the event is lost if the recorder
// dies at that moment.
func (v *verifier) judgeDropped() {
	if len(v.older) > 0 {
		return // the events may be in what was not read
	}
	oldest := v.report.Time
	for _, p := range v.newer {
		if !p.day.IsZero() && p.day.Before(oldest) {
			oldest = p.day
		}
	}
	for _, day := range slices.Sorted(maps.Keys(v.noted)) {
		at := v.noted[day]
		if at.Before(oldest) || v.report.Time.Sub(at) < 10*time.Minute || v.announcedDrops[audit.DroppedDayResource(day)] {
			continue // the retention has dropped the event, too, or it is on its way
		}
		v.report.note("audit_dropped says that rows of %s were dropped at %s, but the log has no %s event of it: either the recorder died at that moment, or rows are being hidden",
			day, at.UTC().Format(time.RFC3339), task.PartitionDropped)
	}
}

func (v *verifier) readDropped(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT topic, partition, first_seq, last_seq, prev_hash, row_hash, to_char(day, 'YYYY-MM-DD'),
		to_regclass(quote_ident('audit_log_' || to_char(day, 'YYYYMMDD'))) IS NOT NULL,
		dropped_at, dropped_at < (day + 2)::timestamp AT TIME ZONE 'UTC' OR dropped_at > now() + interval '1 hour'
		FROM audit_dropped ORDER BY topic, partition, first_seq`)
	if err != nil {
		return fmt.Errorf("reading audit_dropped: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var at audit.TopicPartition
		var s segment
		var prev, last []byte
		var there, impossible bool
		var when time.Time
		if err := rows.Scan(&at.Topic, &at.Partition, &s.first, &s.last, &prev, &last, &s.dropped, &there, &when, &impossible); err != nil {
			return fmt.Errorf("reading audit_dropped: %w", err)
		}
		c := v.chains[at]
		if c == nil || s.first > s.last || len(prev) != len(s.prev) || len(last) != len(s.hash) {
			v.report.add(Finding{Reason: Inserted, Topic: at.Topic, Partition: at.Partition, Seq: s.first, To: s.last,
				Detail: "audit_dropped has an entry that the retention did not write: there is no such chain, or its numbers or hashes are malformed"})
			continue
		}
		v.noteDrop(s.dropped, when)
		if there || impossible {
			why := "but the partition of that day exists"
			if !there {
				why = fmt.Sprintf("at %s, when the retention does not drop that day", when.UTC().Format(time.RFC3339))
			}
			f := Finding{Reason: Missing, Seq: s.first, Detail: fmt.Sprintf("audit_dropped says that the retention dropped it with %s, %s", s.dropped, why)}
			if s.last > s.first {
				f.To = s.last
			}
			c.found(f)
		}
		s.prev, s.hash = audit.Hash(prev), audit.Hash(last)
		v.report.Dropped += s.last - s.first + 1
		if err := v.join(c, s); err != nil {
			return err
		}
	}
	return rows.Err()
}
