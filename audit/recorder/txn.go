package recorder

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/jobrows"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/audit/recorder/states"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// chunkWriter writes chunks, each in one transaction. It is used by one goroutine.
type chunkWriter struct {
	cfg Config
	Deps
	arrays     pg.Encoding
	rows       pg.Rows
	typesKnown bool // the last transaction succeeded, so the connection's row types are valid
	safeChunks int  // this many more chunks are written in mode safe
	began      bool // the last transaction had begun: Postgres is there
	patience   int  // how often a single record ran into a timeout; see timeout
	counts     rollup.Counts
	jobs       jobrows.Rows
	days       days
	breaks     breaks
	offered    []audit.RowDigest // of the results of the current chunk, in the order in which they are written
	digests    []byte            // of the rows that the current transaction has written
	scratch    []byte
	confirm    func(audit.TopicPartition, confirmed) // is called for each partition of a chunk that was committed; may be nil
}

func newChunkWriter(cfg Config, deps Deps) *chunkWriter {
	return &chunkWriter{cfg: cfg, Deps: deps, arrays: pg.ArrayEncoding(deps.Pool), days: newDays()}
}

// mode is how a transaction writes.
type mode int

const (
	// fast takes the shortcuts; see shortcut.go. It fails with errShortcutClosed if one is closed.
	fast mode = iota
	// safe inserts row by row where a shortcut might fail.
	safe
	// probe writes like safe, but leaves out the fence, to see what Postgres refuses. It is rolled back.
	probe
)

// written counts what a transaction wrote.
type written struct {
	rows, results, duplicates, inDefault int
}

// timeout is how long a transaction may take. A chunk of a single record cannot be made smaller: if it runs
// into a timeout, Postgres' own is lifted, and ours grows.
func (w *chunkWriter) timeout() time.Duration {
	return w.cfg.WriteTimeout << min(w.patience, 4)
}

// apply records a chunk in one transaction. If it returns nil, everything is committed. After a
// *lostFenceError nothing is. After any other error that came from the commit, it may be.
func (w *chunkWriter) apply(ctx context.Context, c chunk) (written, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout())
	defer cancel()
	m := fast
	if w.safeChunks > 0 {
		m = safe
	}
	fault.At("audit.before_begin")
	to := c.advance()
	t, err := w.begin(ctx, m, to.shard())
	if err != nil {
		return written{}, err
	}
	defer pg.Rollback(ctx, t.tx)
	t.advance = to
	if err := t.write(ctx, c.units()); err != nil {
		return written{}, err
	}
	fault.At("audit.before_commit")
	if err := t.tx.Commit(ctx); err != nil {
		return written{}, fmt.Errorf("committing: %w", err)
	}
	fault.At("audit.after_commit")
	w.days.convict()
	w.safeChunks = max(0, w.safeChunks-1)
	for part, next := range to {
		part.next = next
		done := confirmed{next: next}
		if end := t.chains[part.TopicPartition]; end != nil {
			done.rows = end.Rows
		}
		if w.confirm != nil {
			w.confirm(part.TopicPartition, done)
		}
	}
	return t.done, nil
}

// probe writes units and rolls back; the error tells whether Postgres refuses them. shard is that
// of their chunk, because it may be a sum that Postgres refuses.
func (w *chunkWriter) probe(ctx context.Context, us []unit, shard int32) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.WriteTimeout)
	defer cancel()
	t, err := w.begin(ctx, probe, shard)
	if err != nil {
		return err
	}
	defer pg.Rollback(ctx, t.tx)
	return t.write(ctx, us)
}

// refusedAmong finds the units that Postgres refuses by halving: about 2 log₂ n probes to find one
// among n. reasons are parallel to refused.
func (w *chunkWriter) refusedAmong(ctx context.Context, us []unit, shard int32) (refused []unit, reasons []error, err error) {
	if len(us) == 0 {
		return nil, nil, nil
	}
	switch err := w.probe(ctx, us, shard); {
	case err == nil:
		return nil, nil, nil
	case !pg.IsRefused(err):
		return nil, nil, err
	case len(us) == 1:
		return us, []error{err}, nil
	}
	half := len(us) / 2
	for _, part := range [][]unit{us[:half], us[half:]} {
		u, r, err := w.refusedAmong(ctx, part, shard)
		if err != nil {
			return nil, nil, err
		}
		refused, reasons = append(refused, u...), append(reasons, r...)
	}
	return refused, reasons, nil
}

// txn is one transaction of a chunkWriter.
type txn struct {
	*chunkWriter
	tx      pgx.Tx
	mode    mode
	shard   int32
	types   rowTypes
	advance advance // nil for a probe
	chains  chains
	states  *states.Set
	bound   map[task.Key]task.Fingerprint // of mode safe: the requests that the ids of the chunk's results belong to
	holes   []*audit.Break
	now     time.Time // of the transaction
	last    lastRow
	done    written
}

// lastRow is the last audit row of the chunk so far. It is encoded once it is known that there is another one, or
// what else the transaction writes: the last one of all has the digests of that.
type lastRow struct {
	event *task.Event // nil: there is none
	from  audit.Source
	end   *chainEnd
}

func (w *chunkWriter) begin(ctx context.Context, m mode, shard int32) (*txn, error) {
	w.began = false
	tx, err := w.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return nil, fmt.Errorf("beginning a transaction: %w", err)
	}
	w.began = true
	if w.patience > 0 {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
			pg.Rollback(ctx, tx)
			return nil, fmt.Errorf("lifting the statement timeout: %w", err)
		}
	}
	w.digests = w.digests[:0]
	return &txn{chunkWriter: w, tx: tx, mode: m, shard: shard, chains: chains{}}, nil
}

// write does everything but the commit, in four round trips: the fence and the results; the states and the jobs;
// the audit rows, of which the last has the digests of all of these; and whom to notify. Many results, and many
// states, are a round trip more each.
func (t *txn) write(ctx context.Context, us []unit) (err error) {
	// After an error the types are looked up again: if the database was restored while the
	// connection stayed, others may have the same names now.
	types := rowTypesOf
	if !t.typesKnown {
		types = lookUpRowTypes
	}
	if t.types, err = types(ctx, t.tx.Conn()); err != nil {
		return err
	}
	t.typesKnown = false
	defer func() { t.typesKnown = err == nil }()

	if t.mode != fast {
		if err := t.bind(ctx, us); err != nil {
			return err
		}
	}
	first, rest := firsts(offers(us))
	won, lost, err := t.claim(ctx, us, first)
	if err != nil {
		return err
	}
	var duplicates []offered
	if rest = append(rest, lost...); len(rest) > 0 {
		if duplicates, err = t.duplicates(ctx, rest, won); err != nil {
			return err
		}
	}
	t.states = states.New(len(us) / 4)
	t.addRows(us, duplicates)
	for _, r := range won {
		s := states.OfResult(r)
		t.states.Add(&s)
		t.counts.AddResult(r)
		t.jobs.AddResult(r)
	}
	if t.mode == fast && t.states.Foreign {
		return errAnotherRequest
	}
	t.states.Bind(t.bound)
	t.done.results, t.done.duplicates = len(won), len(duplicates)
	if err := t.writeStates(ctx); err != nil {
		return err
	}
	t.digestCallbacks(won)
	t.endRows(us)
	if err := t.days.copy(ctx, t.tx); err != nil {
		return err
	}
	fault.At("audit.after_copy")
	return t.finish(ctx, won)
}

// sessionSQL keeps a session that hangs in the middle, because its network is gone, from holding
// its locks for long, and a commit from being acknowledged before it is durable.
const sessionSQL = `SELECT now(), set_config('idle_in_transaction_session_timeout', '30s', true), set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`

// lockSQL locks audit_log as a COPY into it does. Without the lock, a writer would lock partitions
// in its own order, and deadlock with a migration that locks the log and then its partitions; and
// a role that may not add to the log could add to its partitions.
const lockSQL = `LOCK TABLE ONLY audit_log IN ROW EXCLUSIVE MODE`

// claim advances the offsets of the chunk, reads the ends of its chains and inserts its results.
// won are the results that are the first of their tasks; lost are the others.
func (t *txn) claim(ctx context.Context, us []unit, first []offered) (won []*task.Result, lost []offered, err error) {
	var b pgx.Batch
	b.Queue(sessionSQL).QueryRow(func(row pgx.Row) error { return row.Scan(&t.now, nil, nil) })
	passed := t.advance.queue(&b)
	t.chains.queueRead(&b, t.advance)
	b.Queue(lockSQL)
	copying := t.mode == fast && len(first) >= minRowsForCopy
	var taken map[task.Run]bool
	if !copying {
		taken = t.queueResults(&b, first)
	}
	if err := pg.Flush(ctx, t.tx, &b, "advancing offsets and inserting results"); err != nil {
		return nil, nil, err
	}
	if err := passed(); err != nil {
		return nil, nil, err
	}
	if copying {
		if err := t.copyResults(ctx, first); err != nil {
			return nil, nil, fmt.Errorf("writing %d results: %w", len(first), err)
		}
	}
	fault.At("audit.after_results")
	won = make([]*task.Result, 0, len(first))
	for i, o := range first {
		if copying || taken[o.r.Run()] {
			won = append(won, o.r)
			t.addDigest(t.offered[i])
		} else {
			lost = append(lost, o)
		}
	}
	return won, lost, nil
}

// addRows adds the audit rows of the events and of the duplicates to the ends of their chains, and
// the events to the states and to the rollups.
func (t *txn) addRows(us []unit, duplicates []offered) {
	t.days.begin()
	t.counts.Reset()
	t.jobs.Reset()
	var s states.State
	for _, u := range us {
		if u.index == resultIndex {
			continue
		}
		it := &u.entry.events[u.index]
		seq := t.addRow(&it.event, u.entry.source(it.index), t.chains.of(u.entry.part))
		if u.entry.hole != nil {
			u.entry.hole.Seq = seq + 1
			t.holes = append(t.holes, u.entry.hole)
		} else if k := reported(&it.event); k != nil {
			t.holes = append(t.holes, k)
		}
		if states.OfEvent(&it.event, &s) {
			t.states.Add(&s)
		}
		t.states.Reprioritize(&it.event)
		t.counts.Add(&it.event)
		t.jobs.Add(&it.event)
	}
	// In the order of their records, as all rows of a chain.
	slices.SortFunc(duplicates, func(x, y offered) int { return cmp.Compare(x.entry.offset, y.entry.offset) })
	for _, o := range duplicates {
		e := duplicateEvent(o.r, t.Instance, time.Now())
		t.addRow(&e, o.entry.source(0), t.chains.of(o.entry.part))
	}
}

// addRow adds a row to the end of its chain, and returns its number.
func (t *txn) addRow(e *task.Event, from audit.Source, end *chainEnd) (seq int64) {
	t.encodeLast(nil)
	t.last = lastRow{e, from, end}
	return end.Rows + 1
}

func (t *txn) encodeLast(digests []byte) {
	last := t.last
	if last.event == nil {
		return
	}
	t.last = lastRow{}
	rows, ok := t.days.rowsOf(last.event.Time, t.mode)
	rows.row(last.event, last.from, t.now, digests, last.end)
	t.done.rows++
	if !ok {
		t.done.inDefault++
	}
}

func (t *txn) addDigest(d audit.RowDigest) { t.digests = d.Append(t.digests) }

// wroteState adds the digest of a row of tasks.
func (t *txn) wroteState(version int64, record []byte) {
	t.scratch = pg.FieldsOfRecord(t.scratch, record)
	t.addDigest(audit.DigestRow(audit.TaskRows, version, t.scratch))
}

// wroteJob adds the digest of a row of jobs.
func (t *txn) wroteJob(version int64, record []byte) {
	t.scratch = pg.FieldsOfRecord(t.scratch, record)
	t.addDigest(audit.DigestRow(audit.JobRows, version, t.scratch))
}

// extraIndex is the index of a row that is made from no event. Those of events are lower.
const extraIndex = wire.MaxFrameEvents

// digestsNear is how much older than the transaction an audit row with digests is at most. Retention drops rows by
// the times of their events, and digests must not go much sooner than what was written with them.
const digestsNear = audit.Day

// endRows gives the last row the digests of what the transaction has written, and how far it has recorded each
// partition. A chunk of results alone has no
// row, and after an outage the last one may be old: then there is one more.
func (t *txn) endRows(us []unit) {
	t.digests = t.advance.append(t.digests)
	if len(t.digests) > 0 && (t.last.event == nil || t.now.Sub(t.last.event.Time) > digestsNear || t.last.event.Time.Sub(t.now) > digestsNear) {
		e := task.Event{Time: t.now.UTC(), Action: task.RowsRecorded, Outcome: task.OutcomeOK, ActorType: task.ActorStage, ActorID: t.Instance}
		part, at := t.anyRecord(us)
		if t.last.event != nil {
			at.Index = extraIndex
		}
		t.addRow(&e, at, t.chains.of(part))
	}
	t.encodeLast(t.digests)
}

// anyRecord returns the source of a row that is made from no event: the last record, or if all of them became dead
// letters, the last of some partition.
func (t *txn) anyRecord(us []unit) (*ownership, audit.Source) {
	if len(us) > 0 {
		e := us[len(us)-1].entry
		return e.part, e.source(0)
	}
	part := t.advance.parts()[0]
	return part, part.At(audit.Position{Offset: t.advance[part] - 1})
}

// copyFinished copies the states of tasks that begin and end in the chunk, if there are many, as
// behind a backlog. The others are left for the upsert.
func (t *txn) copyFinished(ctx context.Context) error {
	finished := t.states.Finished()
	if len(finished) < minRowsForCopy {
		return nil
	}
	encoded := states.EncodeFinished(&t.rows, finished, func() {
		t.scratch = t.rows.Fields(t.scratch)
		t.addDigest(audit.DigestRow(audit.TaskRows, 1, t.scratch)) // 1 is the default of the column version
	})
	if err := copyByShortcut(ctx, t.tx, states.CopySQL, len(finished), encoded); err != nil {
		return fmt.Errorf("writing the states of %d tasks: %w", len(finished), err)
	}
	t.states.DropFinished()
	return nil
}

// writeStates writes the states and the jobs.
func (t *txn) writeStates(ctx context.Context) error {
	if t.mode == fast {
		if err := t.copyFinished(ctx); err != nil {
			return err
		}
	}
	var b pgx.Batch
	t.states.Queue(&b, &t.rows, t.arrays, t.types.task, t.wroteState)
	t.states.QueuePriorities(&b, t.wroteState)
	t.jobs.Queue(&b, t.wroteJob)
	if b.Len() == 0 {
		return nil
	}
	return asAnotherRequest(pg.Flush(ctx, t.tx, &b, "writing states"))
}

// finish writes the rollups, the ends of the chains and the callbacks, and notifies those who wait for the results.
func (t *txn) finish(ctx context.Context, won []*task.Result) error {
	for _, k := range t.holes {
		if err := t.breaks.state(ctx, t.tx, k); err != nil {
			return err
		}
	}
	var b pgx.Batch
	t.days.queueCheck(&b)
	t.counts.Queue(&b, t.shard)
	t.chains.queueWrite(&b)
	queueCallbacks(&b, won)
	queueNotifications(&b, won)
	return pg.Flush(ctx, t.tx, &b, "writing rollups and the ends of chains")
}
