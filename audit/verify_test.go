package audit

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// chained is a log with a few chains, written by the real writer: records of one
// and of several events, interleaved, in several chunks.
func chained(t testing.TB, pool *pgxpool.Pool) *rig {
	t.Helper()
	r := newRig(t, pool)
	e0, e1, res := r.own("events", 0), r.own("events", 1), r.own("results", 0)
	for i := range 8 {
		var c chunk
		for j := range 3 {
			s := newStory(fmt.Sprintf("t%d-%d", i, j))
			started := s.event(task.AttemptStarted, 1, "d1")
			started.Duration, started.TokensIn, started.Detail = time.Second, 7, []byte(`{"why":"earliest  finish"}`)
			c = append(c, e0.events(t, s.accepted()), e1.events(t, s.accepted(), started), e0.events(t, s.event(task.TaskQueued, 0, ""), started))
			c = append(c, res.result(t, s.result(task.Success, "d1")), res.result(t, s.result(task.Failed, "d2")))
		}
		r.record(c...)
	}
	return r
}

// Rows that chained writes: of events/0, events/1 and results/0.
const rowsOf0, rowsOf1, rowsOfResults = 72, 48, 24

func verify(t testing.TB, pool *pgxpool.Pool, o VerifyOptions) *Report {
	t.Helper()
	r, err := Verify(t.Context(), pool, o, nil)
	require.NoError(t, err)
	return r
}

func execute(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

// positionOf is where a row of events/0 comes from.
func positionOf(t testing.TB, pool *pgxpool.Pool, seq int64) string {
	return one[string](t, pool, "SELECT format('%s/%s@%s#%s', src_topic, src_partition, src_offset, src_index) FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $1", seq)
}

// rehash makes the chain of events/0 anew from a row on, as somebody would who
// can write to the database and knows how hashes are made.
func rehash(t testing.TB, pool *pgxpool.Pool, from, to int64, end bool) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	var out bytes.Buffer
	_, err = conn.Conn().PgConn().CopyTo(t.Context(), &out, fmt.Sprintf(`COPY (SELECT %s, prev_hash, row_hash FROM audit_log
		WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq BETWEEN %d AND %d ORDER BY chain_seq) TO STDOUT (FORMAT binary)`, chainColumns, from-1, to))
	require.NoError(t, err)
	var p rowReader
	prev := genesis("events", 0)
	var b pgx.Batch
	require.NoError(t, p.feed(out.Bytes(), func(r *rawRow) error {
		seq := r.int8(colSeq)
		if seq < from {
			prev, _ = r.hash(colHash)
			return nil
		}
		sum, _ := link(prev, r.covered(), nil)
		b.Queue("UPDATE audit_log SET prev_hash = $1, row_hash = $2 WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $3", bytes.Clone(prev[:]), sum[:], seq)
		prev = sum
		return nil
	}))
	if end {
		b.Queue("UPDATE audit_chains SET hash = $1 WHERE topic = 'events' AND partition = 0", prev[:])
	}
	require.NoError(t, conn.SendBatch(t.Context(), &b).Close())
}

func TestAnHonestLogIsWhole(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := chained(t, pool)
	rep := verify(t, pool, VerifyOptions{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, rowsOf0+rowsOf1+rowsOfResults, rep.Rows)
	require.Len(t, rep.Chains, 3)
	require.Equal(t, ChainReport{Topic: "events", Partition: 0, Rows: rowsOf0, From: 1, Read: rowsOf0}, rep.Chains[0])

	// A second recorder takes one of the partitions; events of other days come
	// late, early, and so that they get no partition at all.
	twin := newRig(t, pool)
	e0 := twin.own("events", 0)
	e0.read = e0.next
	e1 := r.w.offsets.current("events", 1)
	for i := range 12 {
		e := newStory("late").event(task.TaskRefused, 0, "")
		e.Time = time.Now().Add(time.Duration(i-6) * 20 * time.Hour)
		far := newStory("far").event(task.TaskRefused, 0, "")
		far.Time = time.Now().Add(400 * day)
		twin.record(e0.events(t, e, far))
		r.record(e1.events(t, e))
	}
	rep = verify(t, pool, VerifyOptions{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, 12, one[int](t, pool, "SELECT count(*) FROM audit_log_default WHERE time > now() + interval '300 days'"))

	// Only some days of it: what lies before them is found where it is.
	for i := range 8 {
		rep = verify(t, pool, VerifyOptions{Since: time.Now().Add(-time.Duration(i-1) * day)})
		require.True(t, rep.OK(), "%d: %+v", i, rep.Findings)
	}

	// After retention has taken days out of the middle of the chains, it holds.
	before := one[int](t, pool, "SELECT count(*) FROM audit_log")
	require.NoError(t, prune(t.Context(), pool, time.Now().Add(-day), func(droppedDay) {}))
	after := one[int](t, pool, "SELECT count(*) FROM audit_log")
	require.Less(t, after, before)
	rep = verify(t, pool, VerifyOptions{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, before-after, rep.Dropped)
	require.True(t, verify(t, pool, VerifyOptions{Since: time.Now()}).OK())
}

// TestEveryColumnCounts changes each column of one row in turn.
func TestEveryColumnCounts(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	chained(t, pool)
	const seq = 30
	was := positionOf(t, pool, seq)
	rows, err := pool.Query(t.Context(), `SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
		WHERE attrelid = 'audit_log'::regclass AND attnum > 0 AND NOT attisdropped`)
	require.NoError(t, err)
	type column struct{ Name, Type string }
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	require.NoError(t, err)
	require.Len(t, columns, rowWidth, "a column that no hash covers can be changed by anybody")
	values := map[string]string{
		"timestamp with time zone": "COLUMN + interval '1 microsecond'", "text": "coalesce(COLUMN, '') || 'x'", "integer": "coalesce(COLUMN, 0) + 1",
		"bigint": "coalesce(COLUMN, 0) + 1000", "double precision": "coalesce(COLUMN, 0) + 1", "bytea": `decode(repeat('0', 64), 'hex')`, "json": `'{"why":"earliest finish"}'`,
	}
	for _, c := range columns {
		execute(t, pool, fmt.Sprintf("CREATE TABLE saved AS SELECT * FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = %d", seq))
		set := "UPDATE audit_log SET " + c.Name + " = " + strings.ReplaceAll(values[c.Type], "COLUMN", c.Name) + " WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $1"
		execute(t, pool, set, seq)

		rep := verify(t, pool, VerifyOptions{})
		require.False(t, rep.OK(), c.Name)
		first := rep.Chains[0].First
		require.NotNil(t, first, "%s: %+v", c.Name, rep.Findings)
		require.EqualValues(t, seq, first.Seq, c.Name)
		switch c.Name {
		case "src_topic", "src_partition", "chain_seq": // it is where it does not belong
			require.Equal(t, Moved, first.Reason, "%s: %+v", c.Name, rep.Findings)
			require.NotNil(t, first.Row)
		case "src_offset", "src_index":
			require.Equal(t, Changed, first.Reason, "%s: %+v", c.Name, rep.Findings)
			require.NotEqual(t, was, first.Row.Position)
		default:
			require.Equal(t, Changed, first.Reason, "%s: %+v", c.Name, rep.Findings)
			require.Equal(t, was, first.Row.Position, c.Name)
			require.EqualValues(t, 1, rep.Count, "%s: %+v", c.Name, rep.Findings)
		}

		// The other rows differ by their places, so this is the one that was changed.
		execute(t, pool, `DELETE FROM audit_log a WHERE NOT EXISTS (SELECT FROM audit_chains c WHERE c.topic = a.src_topic AND c.partition = a.src_partition)
			OR a.row_hash = (SELECT row_hash FROM saved) OR (a.src_topic = 'events' AND a.src_partition = 0 AND a.chain_seq = $1)`, seq)
		execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		execute(t, pool, "DROP TABLE saved")
		rep = verify(t, pool, VerifyOptions{})
		require.True(t, rep.OK(), "%s: %+v", c.Name, rep.Findings)
	}
}

// TestWhatWasDoneIsNamed tampers in one way after the other, each time with the
// log as it was.
func TestWhatWasDoneIsNamed(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	chained(t, pool)
	execute(t, pool, "CREATE TABLE saved AS SELECT * FROM audit_log")
	execute(t, pool, "CREATE TABLE saved_ends AS SELECT * FROM audit_chains")
	at := map[int64]string{}
	for seq := int64(1); seq <= rowsOf0; seq++ {
		at[seq] = positionOf(t, pool, seq)
	}
	const of0 = " src_topic = 'events' AND src_partition = 0 "
	swap := func(columns, a, b string) string {
		set := make([]string, 0, 4)
		for c := range strings.SplitSeq(columns, ",") {
			set = append(set, fmt.Sprintf("%s = o.%s", c, c))
		}
		return fmt.Sprintf("UPDATE audit_log x SET %s FROM saved o WHERE x.src_topic = 'events' AND x.src_partition = 0 AND o.src_topic = 'events' AND o.src_partition = 0 AND ((x.chain_seq = %s AND o.chain_seq = %s) OR (x.chain_seq = %s AND o.chain_seq = %s))",
			strings.Join(set, ", "), a, b, b, a)
	}
	content := strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimSuffix(chainColumns, ", src_topic, src_partition, src_offset, src_index, chain_seq"), ",", " ")), ",")
	for _, c := range []struct {
		name   string
		do     func()
		reason Reason
		seq    int64
		to     int64
		row    string // "": none has to be named
	}{
		{"a row in the middle is deleted", func() { execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30") }, Missing, 30, 0, ""},
		{"several are deleted", func() { execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq BETWEEN 30 AND 35") }, Missing, 30, 35, ""},
		{"the first is deleted", func() { execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 1") }, Missing, 1, 0, ""},
		{"the last is deleted", func() { execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 72") }, Missing, 72, 0, ""},
		{"all are deleted", func() { execute(t, pool, "DELETE FROM audit_log WHERE"+of0) }, Missing, 1, 72, ""},
		{"the last is deleted and the end set back", func() {
			execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 72")
			execute(t, pool, "UPDATE audit_chains SET rows = 71 WHERE topic = 'events' AND partition = 0")
		}, Changed, 71, 0, at[71]},
		{"a row is deleted and the rest counted anew", func() {
			execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
			execute(t, pool, "UPDATE audit_log SET chain_seq = chain_seq - 1 WHERE"+of0+"AND chain_seq > 30")
		}, Moved, 30, 0, at[31]},
		{"the contents of two rows are swapped", func() { execute(t, pool, swap(content, "20", "40")) }, Moved, 20, 0, at[20]},
		{"the places of two rows are swapped", func() { execute(t, pool, swap("src_offset,src_index", "20", "40")) }, Moved, 20, 0, at[40]},
		{"the numbers of two rows are swapped", func() { execute(t, pool, swap("chain_seq", "20", "40")) }, Moved, 20, 0, at[40]},
		{"numbers and hashes of two rows are swapped", func() { execute(t, pool, swap("chain_seq,prev_hash,row_hash", "20", "40")) }, Moved, 20, 0, at[40]},
		{"two neighbours are swapped and hashed anew", func() {
			execute(t, pool, swap("chain_seq", "20", "21"))
			rehash(t, pool, 20, 72, true)
		}, Moved, 21, 0, at[20]},
		{"a row is added in the middle", func() {
			execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30")
			execute(t, pool, "UPDATE audit_log SET actor_id = 'forged', src_index = src_index + 1 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
		}, Inserted, 30, 0, "forged"},
		{"a row is there twice", func() { execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30") }, Inserted, 30, 0, at[30]},
		{"a row is there twice, the last", func() { execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72") }, Inserted, 72, 0, at[72]},
		{"a row is added at the end", func() {
			execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72")
			execute(t, pool, "UPDATE audit_log SET chain_seq = 73, src_offset = 1000 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
			rehash(t, pool, 73, 73, false)
		}, Inserted, 73, 0, "events/0@1000#" + at[72][strings.Index(at[72], "#")+1:]},
		{"a row without a hash is added", func() {
			execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72")
			execute(t, pool, "UPDATE audit_log SET chain_seq = NULL, prev_hash = NULL, row_hash = NULL, src_offset = 1000 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
		}, Inserted, 1, 0, "events/0@1000#" + at[72][strings.Index(at[72], "#")+1:]},
		{"a row is changed and hashed anew", func() {
			execute(t, pool, "UPDATE audit_log SET actor_id = 'nobody' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, pool, 30, 30, false)
		}, Changed, 30, 0, at[30]},
		{"all rows from one on are hashed anew, but not the end", func() {
			execute(t, pool, "UPDATE audit_log SET actor_id = 'nobody' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, pool, 30, 72, false)
		}, Changed, 72, 0, at[72]},
		{"the first row is hashed anew", func() {
			execute(t, pool, "UPDATE audit_log SET prev_hash = decode(repeat('00', 32), 'hex') WHERE"+of0+"AND chain_seq = 1")
			execute(t, pool, "UPDATE audit_log SET row_hash = row_hash WHERE"+of0) // it lies elsewhere on the disk
		}, Changed, 1, 0, at[1]},
		{"a deletion is called retention, of a day that is there", func() {
			execute(t, pool, `INSERT INTO audit_dropped SELECT time::date, src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
		{"a deletion is called retention, of a day that is not over", func() {
			execute(t, pool, `INSERT INTO audit_dropped SELECT '2099-01-01', src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
		{"a deletion is called retention, before the day was over", func() {
			execute(t, pool, `INSERT INTO audit_dropped SELECT '2020-01-01', src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash, '2020-01-01' FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
	} {
		c.do()
		rep := verify(t, pool, VerifyOptions{})
		require.False(t, rep.OK(), c.name)
		first := rep.Chains[0].First
		require.NotNil(t, first, "%s: %+v", c.name, rep.Findings)
		require.Equal(t, []any{c.reason, c.seq, c.to}, []any{first.Reason, first.Seq, first.To}, "%s: %+v", c.name, rep.Findings)
		switch {
		case c.row == "forged":
			require.NotNil(t, first.Row, c.name)
			require.NotEqual(t, at[30], first.Row.Position, "%s: the one that was recorded is blamed", c.name)
		case c.row != "":
			require.NotNil(t, first.Row, "%s: %+v", c.name, rep.Findings)
			require.Equal(t, c.row, first.Row.Position, "%s: %+v", c.name, rep.Findings)
		}
		for _, other := range rep.Chains[1:] {
			require.Nil(t, other.First, c.name)
		}
		execute(t, pool, "TRUNCATE audit_log, audit_chains, audit_dropped")
		execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		execute(t, pool, "INSERT INTO audit_chains SELECT * FROM saved_ends")
	}
	require.True(t, verify(t, pool, VerifyOptions{}).OK())

	// What is in no chain that there is.
	execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30")
	execute(t, pool, "UPDATE audit_log SET src_topic = 'forged' WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
	rep := verify(t, pool, VerifyOptions{})
	require.EqualValues(t, 1, rep.Count)
	require.Equal(t, Inserted, rep.Findings[0].Reason)
	execute(t, pool, "DELETE FROM audit_log WHERE src_topic = 'forged'")
	execute(t, pool, "DELETE FROM audit_chains WHERE topic = 'events' AND partition = 0")
	rep = verify(t, pool, VerifyOptions{})
	require.EqualValues(t, rowsOf0, rep.Count)
}

func TestRowsFromBeforeTheChainAreCounted(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := chained(t, pool)
	execute(t, pool, "UPDATE audit_log SET chain_seq = NULL, prev_hash = NULL, row_hash = NULL")
	execute(t, pool, "TRUNCATE audit_chains")
	e0 := r.w.offsets.current("events", 0)
	r.record(e0.events(t, newStory("new").accepted()))
	rep := verify(t, pool, VerifyOptions{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, rowsOf0+rowsOf1+rowsOfResults, rep.Before)
}

// A row without a hash is from before the chains only when it was written before
// them: where retention took the first records, a chain begins at any offset.
func TestRowsWithoutAHashAreNotTakenForOldOnes(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := newRig(t, pool)
	e0 := r.own("events", 0)
	e0.read = 1000
	r.record(e0.events(t, newStory("t1").accepted(), newStory("t2").accepted()))
	require.True(t, verify(t, pool, VerifyOptions{}).OK())
	const insert = `INSERT INTO audit_log (time, ingested_at, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index)
		VALUES (now(), now() + $1::interval, 'acme', 'user', 'mallory', 'task.accepted', 'ok', 'events', $2, 7, 0)`
	for _, v := range []struct {
		after     string
		partition int
		ok        bool
	}{{"-1 hour", 0, true}, {"2 hours", 0, false}, {"-1 hour", 77, true}, {"25 hours", 77, false}} {
		execute(t, pool, insert, v.after, v.partition)
		rep := verify(t, pool, VerifyOptions{})
		require.Equal(t, v.ok, rep.OK(), "%+v: %+v", v, rep.Findings)
		if !v.ok {
			require.Equal(t, Inserted, rep.Findings[0].Reason)
			require.Equal(t, fmt.Sprintf("events/%d@7#0", v.partition), rep.Findings[0].Row.Position)
			execute(t, pool, "DELETE FROM audit_log WHERE chain_seq IS NULL")
		}
	}
}

// TestVerifyWhileRowsAreWritten verifies again and again while two recorders
// write and days are made and dropped.
func TestVerifyWhileRowsAreWritten(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	var writers []func(i int)
	for p := range 2 {
		r := newRig(t, pool)
		part := r.own("events", p)
		writers = append(writers, func(i int) {
			e := newStory("t").event(task.TaskRefused, 0, "")
			e.Time = time.Now().Add(-time.Duration(i%5) * day)
			r.record(part.events(t, e, e), part.events(t, e))
		})
		for i := range 5 { // each knows all days: none is made again after it was dropped, as its retention would have it
			writers[p](i)
		}
	}
	for _, write := range writers {
		writing.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				write(i)
			}
		})
	}
	writing.Go(func() {
		for ctx.Err() == nil {
			_ = prune(ctx, pool, time.Now().Add(-2*day), func(droppedDay) {}) // it may have to wait too long for a lock
		}
	})
	var rows int64
	for i := range 20 {
		o := VerifyOptions{}
		if i%3 == 2 {
			o.Since = time.Now().Add(-day)
		}
		rep := verify(t, pool, o)
		require.True(t, rep.OK(), "%+v", rep.Findings)
		rows += rep.Rows
	}
	stop()
	writing.Wait()
	require.NotZero(t, rows)
	require.True(t, verify(t, pool, VerifyOptions{}).OK())
}

func TestSinceFindsWhatIsMissingAtItsEdge(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := newRig(t, pool)
	e0 := r.own("events", 0)
	for i := range 30 { // a row a time, alternating between days around the middle
		e := newStory("t").event(task.TaskRefused, 0, "")
		e.Time = dayOf(time.Now()).Add(-time.Minute)
		if i > 20 || (i > 10 && i%2 == 0) {
			e.Time = dayOf(time.Now())
		}
		r.record(e0.events(t, e))
	}
	today := VerifyOptions{Since: time.Now()}
	rep := verify(t, pool, today)
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, 1, rep.Chains[0].From, "what comes before the first row of today is looked up")
	for _, c := range []struct {
		deleted int64
		found   bool
	}{{14, true}, {13, true}, {25, true}, {30, true}, {12, true}, {5, true}} {
		execute(t, pool, fmt.Sprintf("CREATE TABLE saved AS SELECT * FROM audit_log WHERE chain_seq = %d", c.deleted))
		execute(t, pool, "DELETE FROM audit_log WHERE chain_seq = $1", c.deleted)
		rep := verify(t, pool, today)
		require.Equal(t, c.found, !rep.OK(), "%d: %+v", c.deleted, rep.Findings)
		if c.found {
			require.Equal(t, []any{Missing, c.deleted}, []any{rep.Findings[0].Reason, rep.Findings[0].Seq}, "%+v", rep.Findings)
		}
		execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		execute(t, pool, "DROP TABLE saved")
	}
}

func TestADisorderedDiskIsBounded(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	chained(t, pool)
	execute(t, pool, "CREATE TABLE saved AS SELECT * FROM audit_log ORDER BY md5(row_hash::text)")
	execute(t, pool, "TRUNCATE audit_log")
	execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
	require.True(t, verify(t, pool, VerifyOptions{}).OK())
	_, err := Verify(t.Context(), pool, VerifyOptions{MaxSegments: 10}, nil)
	require.ErrorContains(t, err, "--since")
}

// TestAuditorsMayVerify verifies as the role that may read the whole table and
// no partition of it by its name.
func TestAuditorsMayVerify(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	r := chained(t, pool)
	e0 := r.w.offsets.current("events", 0)
	for _, days := range []int{-2, -1, 400} { // the last to the default partition
		e := newStory("t").event(task.TaskRefused, 0, "")
		e.Time = time.Now().Add(time.Duration(days) * day)
		r.record(e0.events(t, e))
	}
	cfg := pool.Config()
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE batchyard_auditor")
		return err
	}
	auditor, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(auditor.Close)
	_, err = auditor.Exec(t.Context(), "SELECT count(*) FROM audit_log_default")
	require.ErrorContains(t, err, "permission denied")
	rep := verify(t, auditor, VerifyOptions{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, rowsOf0+rowsOf1+rowsOfResults+3, rep.Rows, "each row once")
	rep = verify(t, auditor, VerifyOptions{Since: time.Now().Add(-day)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	execute(t, pool, "DELETE FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = 30")
	rep = verify(t, auditor, VerifyOptions{})
	require.EqualValues(t, 1, rep.Count)
	require.Equal(t, Missing, rep.Findings[0].Reason)
}
