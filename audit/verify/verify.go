// Package verify checks that the audit log in Postgres is what the recorders wrote: that no row was
// changed, removed, moved or added, and that no chain was rewritten after a checkpoint was signed. It
// only reads, and trusts nothing but the keys that checkpoints are signed with.
package verify

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/advances"
	"github.com/batchyard/batchyard/audit/verify/catalog"
	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/audit/verify/trees"
	"github.com/batchyard/batchyard/internal/pg"
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
	// MaxRows bounds the memory, too: the number of rows of other tables, and of their digests. 0: a hundred million.
	MaxRows int
	// Readers is the number of connections that read at the same time; 0: one for each processor, at most 4. More
	// than one need Postgres 14, a role that may read partitions by their names, and a pool with enough connections.
	Readers int
	// Settled says that nothing is in flight: a result without its event, or an event without its result,
	// is a finding. Otherwise that is so only if it is older than [settling].
	Settled bool
	// LogOnly leaves out the tables that are not part of the log, and the definitions.
	LogOnly bool
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
//	         audit_statements ──▶ what recorders and operators have explained, signed
//	             audit_chains ──▶ does each chain lead from its beginning to its end?
//	              checkpoints ──▶ is it the chain that was signed?
func Run(ctx context.Context, pool *pgxpool.Pool, o Options, progress func(Progress)) (*Report, error) {
	if o.MaxSegments == 0 {
		o.MaxSegments = 1 << 20
	}
	if o.MaxRows == 0 {
		o.MaxRows = 100_000_000
	}
	if o.Readers == 0 {
		o.Readers = min(runtime.GOMAXPROCS(0), 4)
	}
	o.Readers = min(o.Readers, int(pool.Config().MaxConns))
	if progress == nil {
		progress = func(Progress) {}
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres: %w", err)
	}
	defer conn.Release()
	defer release(conn)
	o.Checkpoints.check()
	schema := ""
	for try := 0; ; try++ {
		v := newVerifier(o, progress)
		v.pool = pool
		v.schema = schema // the session no longer looks for it
		err := v.inSnapshot(ctx, conn.Conn())
		schema = v.schema
		if pg.Code(err) == pg.UndefinedTable && try < 3 && v.report.Rows == 0 {
			continue // a partition was dropped between listing and locking
		}
		if err != nil && !v.malformed(err) {
			return nil, fmt.Errorf("verifying the audit log: %w", err)
		}
		return v.report, nil
	}
}

func newVerifier(o Options, progress func(Progress)) *verifier {
	return &verifier{
		o: o, progress: progress, report: &Report{Since: o.Since.UTC()}, chains: map[audit.TopicPartition]*chainCheck{},
		restores: map[audit.TopicPartition][]restore{}, statements: map[int64]audit.Hash{}, told: map[int64]time.Time{}, drops: map[string]*audit.Statement{},
	}
}

// release gives the connection back as it was.
func release(conn *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := conn.Exec(ctx, "RESET search_path"); err != nil {
		_ = conn.Conn().Close(ctx)
	}
}

// malformed takes an error that says that a table is not as the migrations define it: that is a
// finding, and so is a column of another type. It reports false for other errors: someone may not read a table, or
// there is no log.
func (v *verifier) malformed(err error) bool {
	var scan pgx.ScanArgError
	if v.schema != "" && errors.As(err, &scan) {
		v.report.add(Finding{Reason: Definition, Detail: fmt.Sprintf("the log cannot be read as the migrations define it: %s", err)})
		return true
	}
	code := pg.Code(err)
	// Row security hides rows from a login as if it lacked a right; that it is on is a finding already.
	if v.schema == "" || code == pg.InsufficientPrivilege && v.report.OK() || !strings.HasPrefix(code, "42") && !strings.HasPrefix(code, "22") {
		return false
	}
	v.report.add(Finding{Reason: Definition, Detail: fmt.Sprintf("the log cannot be read as the migrations define it: %s", pg.Describe(err))})
	return true
}

// verifier is one verification.
type verifier struct {
	o        Options
	progress func(Progress)
	pool     *pgxpool.Pool
	conn     *pgx.Conn
	snapshot string      // for other connections; empty: there are none
	others   []*pgx.Conn // that read in the same snapshot
	closing  []func()    // give the others back
	tables   *tables.Log // what the log says about other tables; nil: they are not compared
	turn     sync.Mutex  // of those who read, for everything below
	chains   map[audit.TopicPartition]*chainCheck
	lastOf   *chainCheck // of the previous row
	segments int         // in all chains

	newer, older []partitionTable // to be read, and to be read if necessary, the newest first
	olderRead    int
	standby      bool
	about        int64

	unknown       []Finding // rows of chains that audit_chains does not have
	unknownCount  int64
	schema        string // that has the log
	restores      map[audit.TopicPartition][]restore
	breaks        []*statedBreak
	told          map[int64]time.Time         // when statements say that they were signed, by their numbers
	recovered     []time.Time                 // when rows that Postgres had lost were recorded again
	statements    map[int64]audit.Hash        // of the statements, by their numbers
	statementsEnd int64                       // number of the last
	drops         map[string]*audit.Statement // about dropped rows, by the digests of the runs
	adopted       *audit.Statement            // the one that covers what had been dropped before; nil: none
	dropped       []droppedRun
	schemaSeen    *audit.Statement // the last about the schema; nil: none
	suspects      []suspect
	forest        trees.Forest
	advances      advances.Log
	gaps          []singleGap
	scratch       []byte
	parts         []byte
	report        *Report
}

// partitionTable is a partition of audit_log.
type partitionTable struct {
	name string    // without its schema
	full string    // with it, quoted
	size int64     // in pages
	log  string    // the whole table, quoted
	day  time.Time // zero: the default partition

	// direct says that the login may read the partition by its name. The role batchyard_auditor may
	// read the whole table only.
	direct bool
}

// from returns a FROM clause for the rows of exactly this partition.
func (p partitionTable) from(where string) string {
	var from, own string
	switch {
	case p.direct:
		from = "ONLY " + p.full
	case !p.day.IsZero(): // the bounds of the partition, which select it alone
		from, own = p.log, fmt.Sprintf("time >= '%s' AND time < '%s'", p.day.Format(time.RFC3339), p.day.Add(audit.Day).Format(time.RFC3339))
	default:
		from, own = p.log, fmt.Sprintf("tableoid = '%s'::regclass", strings.ReplaceAll(p.full, "'", "''"))
	}
	switch {
	case own != "" && where != "":
		return from + " WHERE " + own + " AND (" + where + ")"
	case own+where != "":
		return from + " WHERE " + own + where
	}
	return from
}

// locate finds the schema of the log. From then on the search path of the session has no other than
// Postgres' own, so that every name of a table says which schema it is in.
func (v *verifier) locate(ctx context.Context) error {
	if v.schema != "" {
		return nil
	}
	schema, err := catalog.Locate(ctx, v.conn)
	if err != nil {
		return err
	}
	if _, err := v.conn.Exec(ctx, "SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)"); err != nil {
		return fmt.Errorf("preparing the session: %w", err)
	}
	v.schema = schema
	return nil
}

// table returns the qualified name of a table.
func (v *verifier) table(name string) string { return pgx.Identifier{v.schema, name}.Sanitize() }

const partitionsSQL = `
SELECT c.relname::text, n.nspname::text, c.reltuples::bigint, has_table_privilege(c.oid, 'SELECT'), CASE WHEN c.relkind = 'r' THEN coalesce(pg_relation_size(c.oid), 0) / 8192 ELSE 0 END FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = $1::regclass ORDER BY c.relname`

func (v *verifier) list(ctx context.Context) ([]partitionTable, error) {
	rows, err := v.conn.Query(ctx, partitionsSQL, v.table("audit_log"))
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
	}
	defer rows.Close()
	var all []partitionTable
	v.about = 0
	for rows.Next() {
		p := partitionTable{log: v.table("audit_log")}
		var about int64
		var schema string
		if err := rows.Scan(&p.name, &schema, &about, &p.direct, &p.size); err != nil {
			return nil, fmt.Errorf("listing the partitions of audit_log: %w", err)
		}
		p.full = pgx.Identifier{schema, p.name}.Sanitize()
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
	if err := v.locate(ctx); err != nil {
		return err
	}
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
	// locks come before the first query, which takes the snapshot, and that of the whole table first, as
	// the retention takes them: otherwise each could wait for the other. The default partition is never
	// dropped, and a lock on it would hold up the creation of others.
	lock := []string{"ONLY " + v.table("audit_log")}
	for _, p := range listed {
		if !p.direct {
			lock = []string{v.table("audit_log")} // and with it all partitions
			break
		}
		if !p.day.IsZero() {
			lock = append(lock, "ONLY "+p.full)
		}
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE "+strings.Join(lock, ", ")+" IN ACCESS SHARE MODE"); err != nil {
		return fmt.Errorf("keeping partitions from being dropped meanwhile: %w", err)
	}
	if err := v.prepare(ctx, tx); err != nil {
		return err
	}
	defer v.closeOthers()
	if len(v.older) > 0 {
		v.report.gap(GapPeriod, "rows of days before %s were not read", v.o.Since.UTC().Format(time.DateOnly))
	}
	if err := v.compareDefinitions(ctx, tx); err != nil {
		return err
	}
	if err := v.readAll(ctx, tx); err != nil {
		return err
	}
	for _, p := range v.older {
		where := v.lackingRows()
		if where == "" {
			break
		}
		if err := v.read(ctx, v.conn, p, where); err != nil {
			return err
		}
		v.olderRead++
	}
	if err := v.judge(ctx, tx); err != nil {
		return err
	}
	return v.compareTables(ctx, tx)
}

// prepare configures the session, takes the snapshot, and reads from it what the rows are compared
// with.
func (v *verifier) prepare(ctx context.Context, tx pgx.Tx) error {
	if err := configure(ctx, tx); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, "SELECT now(), pg_is_in_recovery()").Scan(&v.report.Time, &v.standby); err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	v.report.Time = v.report.Time.UTC()
	if err := v.exportSnapshot(ctx, tx); err != nil {
		return err
	}
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
	if err := v.readStatements(ctx, tx); err != nil {
		return err
	}
	if err := v.readBreaks(ctx, tx); err != nil {
		return err
	}
	if err := v.readDropped(ctx, tx); err != nil {
		return err
	}
	if !v.o.LogOnly {
		v.tables = tables.NewLog(v.tableOptions())
	}
	return nil
}

// maxChains bounds the chains: usually one for each partition of two topics.
const maxChains = 1 << 16

func (v *verifier) readEnds(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT coalesce(topic, ''), coalesce(partition, -1), coalesce(rows, -1), coalesce(hash, ''), coalesce(edge, ''), CASE WHEN isfinite(updated_at) THEN updated_at END
		FROM `+v.table("audit_chains")+` ORDER BY 1, 2 LIMIT $1`, maxChains+1)
	if err != nil {
		return fmt.Errorf("reading audit_chains: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		c := &chainCheck{edges: map[int64]int64{}, statements: v.statements}
		var sum, edge []byte
		var updated *time.Time
		if err := rows.Scan(&c.at.Topic, &c.at.Partition, &c.end.Rows, &sum, &edge, &updated); err != nil {
			return fmt.Errorf("reading audit_chains: %w", err)
		}
		if updated != nil {
			c.updated = *updated
		}
		if len(sum) == len(c.end.Hash) {
			c.end.Hash = audit.Hash(sum)
		} // else it stays zero, which matches no row
		c.byEnd, c.byStart = map[link]*segment{}, map[link]*segment{}
		c.points = v.o.Checkpoints.pointsOf(c.at)
		c.tree = v.forest.New(edge, rootsAt(c.points))
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
