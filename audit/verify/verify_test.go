package verify

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

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/verify/copyrows"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func verify(t testing.TB, pool *pgxpool.Pool, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), pool, o, nil)
	require.NoError(t, err)
	return r
}

// positionOf returns the source of a row of events/0.
func positionOf(t testing.TB, pool *pgxpool.Pool, seq int64) string {
	return audittest.One[string](t, pool, "SELECT format('%s/%s@%s#%s', src_topic, src_partition, src_offset, src_index) FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $1", seq)
}

// rehash recomputes the chain of events/0 from a row on, as someone would who can write to the
// database and knows how hashes are made.
func rehash(t testing.TB, pool *pgxpool.Pool, from, to int64, end bool) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	prev := audit.Genesis(audit.PartitionOf("events", 0))
	var b pgx.Batch
	query := fmt.Sprintf("SELECT %s, prev_hash, row_hash FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq BETWEEN %d AND %d ORDER BY chain_seq", audit.HashedColumns, from-1, to)
	require.NoError(t, copyrows.Read(t.Context(), conn.Conn().PgConn(), query, audit.RowWidth, copyrows.Handler{Row: func(row *copyrows.Row) error {
		r := rawRow{row}
		seq := r.Int8(audit.ColSeq)
		if seq < from {
			prev, _ = r.hash(audit.ColHash)
			return nil
		}
		sum, _ := audit.RowHash(prev, r.covered(), nil)
		b.Queue("UPDATE audit_log SET prev_hash = $1, row_hash = $2 WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $3", bytes.Clone(prev[:]), sum[:], seq)
		prev = sum
		return nil
	}}))
	if end {
		b.Queue("UPDATE audit_chains SET hash = $1 WHERE topic = 'events' AND partition = 0", prev[:])
	}
	require.NoError(t, conn.SendBatch(t.Context(), &b).Close())
	if end {
		retree(t, pool)
	}
}

// retree recomputes the Merkle tree of events/0 from its rows, as someone would who knows how it is made.
func retree(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT leaf FROM (SELECT node + 1 AS seq, hash AS leaf FROM audit_tree WHERE topic = 'events' AND partition = 0 AND level = 0
		UNION SELECT chain_seq, sha256('\x00'::bytea || row_hash) FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND row_hash IS NOT NULL) q ORDER BY seq`)
	require.NoError(t, err)
	leaves, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	require.NoError(t, err)
	var tree audit.Edge
	var kept []audit.Node
	for _, l := range leaves {
		if len(l) == sha256Size {
			kept = tree.Append(audit.Hash(l), kept)
		}
	}
	var b pgx.Batch
	b.Queue("DELETE FROM audit_tree WHERE topic = 'events' AND partition = 0 AND level > 0")
	for _, n := range kept {
		b.Queue("INSERT INTO audit_tree VALUES ('events', 0, $1, $2, $3)", n.Level, n.Index, n.Hash[:])
	}
	b.Queue("UPDATE audit_chains SET edge = $1 WHERE topic = 'events' AND partition = 0", tree.Bytes())
	require.NoError(t, pool.SendBatch(t.Context(), &b).Close())
}

func TestAnHonestLogIsWhole(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.Chained(t, pool)
	rep := verify(t, pool, Options{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, rig.RowsOfEvents0+rig.RowsOfEvents1+rig.RowsOfResults0, rep.Rows)
	require.Len(t, rep.Chains, 3)
	require.Equal(t, ChainReport{Topic: "events", Partition: 0, Rows: rig.RowsOfEvents0, From: 1, Read: rig.RowsOfEvents0, Hash: rep.Chains[0].Hash}, rep.Chains[0])

	// A second recorder takes over a partition; events of other days arrive late, early, and with
	// times for which there is no partition.
	twin := rig.New(t, pool)
	e0 := twin.Own("events", 0)
	e1 := r.Owned("events", 1)
	for i := range 12 {
		e := audittest.NewStory("late").Event(task.TaskRefused, 0, "")
		e.Time = time.Now().Add(time.Duration(i-6) * 20 * time.Hour)
		far := audittest.NewStory("far").Event(task.TaskRefused, 0, "")
		far.Time = time.Now().Add(400 * audit.Day)
		twin.Record(e0.Events(t, e, far))
		r.Record(e1.Events(t, e))
	}
	rep = verify(t, pool, Options{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.Equal(t, 12, audittest.One[int](t, pool, "SELECT count(*) FROM audit_log_default WHERE time > now() + interval '300 days'"))

	// Only some of the days: what lies before them is found where it is.
	for i := range 8 {
		rep = verify(t, pool, Options{Since: time.Now().Add(-time.Duration(i-1) * audit.Day)})
		require.True(t, rep.OK(), "%d: %+v", i, rep.Findings)
	}

	// It still holds after the retention has dropped days out of the middle of the chains.
	before := audittest.One[int](t, pool, "SELECT count(*) FROM audit_log")
	require.NoError(t, r.DropDays(time.Now().Add(-audit.Day)))
	after := audittest.One[int](t, pool, "SELECT count(*) FROM audit_log")
	require.Less(t, after, before)
	rep = verify(t, pool, Options{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, before-after, rep.Dropped)
	require.True(t, verify(t, pool, Options{Since: time.Now()}).OK())
}

// TestEveryColumnCounts changes each column of one row in turn.
func TestEveryColumnCounts(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rig.Chained(t, pool)
	const seq = 30
	was := positionOf(t, pool, seq)
	rows, err := pool.Query(t.Context(), `SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
		WHERE attrelid = 'audit_log'::regclass AND attnum > 0 AND NOT attisdropped`)
	require.NoError(t, err)
	type column struct{ Name, Type string }
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[column])
	require.NoError(t, err)
	require.Len(t, columns, audit.RowWidth, "a column that no hash covers can be changed by anybody")
	values := map[string]string{
		"timestamp with time zone": "COLUMN + interval '1 microsecond'", "text": "coalesce(COLUMN, '') || 'x'", "integer": "coalesce(COLUMN, 0) + 1",
		"bigint": "coalesce(COLUMN, 0) + 1000", "double precision": "coalesce(COLUMN, 0) + 1", "bytea": `decode(repeat('0', 64), 'hex')`, "json": `'{"why":"earliest finish"}'`,
	}
	for _, c := range columns {
		audittest.Execute(t, pool, fmt.Sprintf("CREATE TABLE saved AS SELECT * FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = %d", seq))
		set := "UPDATE audit_log SET " + c.Name + " = " + strings.ReplaceAll(values[c.Type], "COLUMN", c.Name) + " WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = $1"
		audittest.Execute(t, pool, set, seq)

		rep := verify(t, pool, Options{})
		require.False(t, rep.OK(), c.Name)
		first := rep.Chains[0].First
		require.NotNil(t, first, "%s: %+v", c.Name, rep.Findings)
		require.EqualValues(t, seq, first.Seq, c.Name)
		switch c.Name {
		case "src_topic", "src_partition", "chain_seq": // it is in a place where it does not belong
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

		// The other rows have other positions, so this is the one that was changed.
		audittest.Execute(t, pool, `DELETE FROM audit_log a WHERE NOT EXISTS (SELECT FROM audit_chains c WHERE c.topic = a.src_topic AND c.partition = a.src_partition)
			OR a.row_hash = (SELECT row_hash FROM saved) OR (a.src_topic = 'events' AND a.src_partition = 0 AND a.chain_seq = $1)`, seq)
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		audittest.Execute(t, pool, "DROP TABLE saved")
		rep = verify(t, pool, Options{})
		require.True(t, rep.OK(), "%s: %+v", c.Name, rep.Findings)
	}
}

// TestTamperingIsNamed tampers in one way after the other, each time with the original log.
func TestTamperingIsNamed(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rig.Chained(t, pool)
	audittest.Execute(t, pool, "CREATE TABLE saved AS SELECT * FROM audit_log")
	audittest.Execute(t, pool, "CREATE TABLE saved_ends AS SELECT * FROM audit_chains")
	at := map[int64]string{}
	for seq := int64(1); seq <= rig.RowsOfEvents0; seq++ {
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
	content := strings.Join(strings.Fields(strings.ReplaceAll(strings.TrimSuffix(audit.HashedColumns, ", src_topic, src_partition, src_offset, src_index, chain_seq"), ",", " ")), ",")
	for _, c := range []struct {
		name   string
		do     func()
		reason Reason
		seq    int64
		to     int64
		row    string // "": none has to be named
	}{
		{"a row in the middle is deleted", func() { audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30") }, Missing, 30, 0, ""},
		{"several are deleted", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq BETWEEN 30 AND 35")
		}, Missing, 30, 35, ""},
		{"the first is deleted", func() { audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 1") }, Missing, 1, 0, ""},
		{"the last is deleted", func() { audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 72") }, Missing, 72, 0, ""},
		{"all are deleted", func() { audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0) }, Missing, 1, 72, ""},
		{"the last is deleted and the end set back", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 72")
			audittest.Execute(t, pool, "UPDATE audit_chains SET rows = 71 WHERE topic = 'events' AND partition = 0")
		}, Changed, 71, 0, at[71]},
		{"a row is deleted and the rest renumbered", func() {
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
			audittest.Execute(t, pool, "UPDATE audit_log SET chain_seq = chain_seq - 1 WHERE"+of0+"AND chain_seq > 30")
		}, Moved, 30, 0, at[31]},
		{"the contents of two rows are swapped", func() { audittest.Execute(t, pool, swap(content, "20", "40")) }, Moved, 20, 0, at[20]},
		{"the places of two rows are swapped", func() { audittest.Execute(t, pool, swap("src_offset,src_index", "20", "40")) }, Moved, 20, 0, at[40]},
		{"the numbers of two rows are swapped", func() { audittest.Execute(t, pool, swap("chain_seq", "20", "40")) }, Moved, 20, 0, at[40]},
		{"numbers and hashes of two rows are swapped", func() { audittest.Execute(t, pool, swap("chain_seq,prev_hash,row_hash", "20", "40")) }, Moved, 20, 0, at[40]},
		{"two neighbours are swapped and rehashed", func() {
			audittest.Execute(t, pool, swap("chain_seq", "20", "21"))
			rehash(t, pool, 20, 72, true)
		}, Moved, 21, 0, at[20]},
		{"a row is added in the middle", func() {
			audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30")
			audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'forged', src_index = src_index + 1 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
		}, Inserted, 30, 0, "forged"},
		{"a row exists twice", func() {
			audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30")
		}, Inserted, 30, 0, at[30]},
		{"the last row exists twice", func() {
			audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72")
		}, Inserted, 72, 0, at[72]},
		{"a row is added at the end", func() {
			audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72")
			audittest.Execute(t, pool, "UPDATE audit_log SET chain_seq = 73, src_offset = 1000 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
			rehash(t, pool, 73, 73, false)
		}, Inserted, 73, 0, "events/0@1000#" + at[72][strings.Index(at[72], "#")+1:]},
		{"a row without a hash is added", func() {
			audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 72")
			audittest.Execute(t, pool, "UPDATE audit_log SET chain_seq = NULL, prev_hash = NULL, row_hash = NULL, src_offset = 1000 WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
		}, Inserted, 0, 0, "events/0@1000#" + at[72][strings.Index(at[72], "#")+1:]},
		{"a row is changed and rehashed", func() {
			audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, pool, 30, 30, false)
		}, Changed, 30, 0, at[30]},
		{"all rows from one on are rehashed, but not the end", func() {
			audittest.Execute(t, pool, "UPDATE audit_log SET actor_id = 'mallory' WHERE"+of0+"AND chain_seq = 30")
			rehash(t, pool, 30, 72, false)
		}, Changed, 72, 0, at[72]},
		{"the first row is rehashed", func() {
			audittest.Execute(t, pool, "UPDATE audit_log SET prev_hash = decode(repeat('00', 32), 'hex') WHERE"+of0+"AND chain_seq = 1")
			audittest.Execute(t, pool, "UPDATE audit_log SET row_hash = row_hash WHERE"+of0) // moves it elsewhere on the disk
		}, Changed, 1, 0, at[1]},
		{"a deletion is called retention, of a day that exists", func() {
			audittest.Execute(t, pool, `INSERT INTO audit_dropped SELECT time::date, src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
		{"a deletion is called retention, of a day that is not over", func() {
			audittest.Execute(t, pool, `INSERT INTO audit_dropped SELECT '2099-01-01', src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
		{"a deletion is called retention, before the day was over", func() {
			audittest.Execute(t, pool, `INSERT INTO audit_dropped SELECT '2020-01-01', src_topic, src_partition, chain_seq, chain_seq, prev_hash, row_hash, '2020-01-01' FROM audit_log WHERE`+of0+"AND chain_seq = 30")
			audittest.Execute(t, pool, "DELETE FROM audit_log WHERE"+of0+"AND chain_seq = 30")
		}, Missing, 30, 0, ""},
	} {
		c.do()
		rep := verify(t, pool, Options{LogOnly: true})
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
		audittest.Execute(t, pool, "TRUNCATE audit_log, audit_chains, audit_dropped")
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		audittest.Execute(t, pool, "INSERT INTO audit_chains SELECT * FROM saved_ends")
	}
	require.True(t, verify(t, pool, Options{}).OK())

	// Rows of no chain.
	audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved WHERE"+of0+"AND chain_seq = 30")
	audittest.Execute(t, pool, "UPDATE audit_log SET src_topic = 'forged' WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE"+of0+")")
	rep := verify(t, pool, Options{})
	require.EqualValues(t, 1, rep.Count)
	require.Equal(t, Inserted, rep.Findings[0].Reason)
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE src_topic = 'forged'")
	audittest.Execute(t, pool, "DELETE FROM audit_chains WHERE topic = 'events' AND partition = 0")
	rep = verify(t, pool, Options{})
	require.EqualValues(t, rig.RowsOfEvents0, rep.Count)
}

// A row without a hash is forged, whenever it claims to have been written and in whatever partition.
func TestRowsWithoutAHashAreInserted(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	e0 := r.Own("events", 0)
	e0.Next = 1000
	r.Record(e0.Events(t, audittest.NewStory("t1").Accepted(), audittest.NewStory("t2").Accepted()))
	require.True(t, verify(t, pool, Options{}).OK())
	audittest.Execute(t, pool, "SELECT batchyard_make_audit_partition('2026-01-31')")
	const insert = `INSERT INTO audit_log (time, ingested_at, tenant, actor_type, actor_id, action, outcome, src_topic, src_partition, src_offset, src_index)
		VALUES ($1::timestamptz, $1::timestamptz, 'acme', 'user', 'mallory', 'device.drained', 'ok', $2, $3, 7, 0)`
	for _, v := range []struct {
		at, topic string
		partition int
	}{{"now", "events", 0}, {"2026-01-31", "events", 0}, {"2020-01-01", "events", 77}, {"2026-01-31", "forged", 0}} {
		audittest.Execute(t, pool, insert, v.at, v.topic, v.partition)
		rep := verify(t, pool, Options{})
		require.EqualValues(t, 1, rep.Count, "%+v: %+v", v, rep.Findings)
		require.Equal(t, Inserted, rep.Findings[0].Reason)
		require.Equal(t, fmt.Sprintf("%s/%d@7#0", v.topic, v.partition), rep.Findings[0].Row.Position)
		audittest.Execute(t, pool, "DELETE FROM audit_log WHERE chain_seq IS NULL")
	}
	// A recorder's row without its hashes.
	audittest.Execute(t, pool, "UPDATE audit_log SET chain_seq = NULL, prev_hash = NULL, row_hash = NULL WHERE chain_seq = 2")
	rep := verify(t, pool, Options{})
	require.EqualValues(t, 2, rep.Count, "%+v", rep.Findings)
}

// TestVerifyWhileRowsAreWritten verifies repeatedly while two recorders write and days are created
// and dropped.
func TestVerifyWhileRowsAreWritten(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	var writers []func(i int)
	for p := range 2 {
		r := rig.New(t, pool)
		part := r.Own("events", p)
		writers = append(writers, func(i int) {
			e := audittest.NewStory("t").Event(task.TaskRefused, 0, "")
			e.Time = time.Now().Add(-time.Duration(i%5) * audit.Day)
			r.Record(part.Events(t, e, e), part.Events(t, e))
		})
		for i := range 5 { // each knows all days, so that none is created again after it was dropped
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
	retention := rig.New(t, pool)
	writing.Go(func() {
		for ctx.Err() == nil {
			_ = retention.DropDays(time.Now().Add(-2 * audit.Day)) // waiting for a lock may take too long
		}
	})
	var rows int64
	for i := range 20 {
		o := Options{}
		if i%3 == 2 {
			o.Since = time.Now().Add(-audit.Day)
		}
		rep := verify(t, pool, o)
		require.True(t, rep.OK(), "%+v", rep.Findings)
		rows += rep.Rows
	}
	stop()
	writing.Wait()
	require.NotZero(t, rows)
	require.True(t, verify(t, pool, Options{}).OK())
}

func TestSinceFindsWhatIsMissingAtItsEdge(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	e0 := r.Own("events", 0)
	for i := range 30 { // one row at a time, alternating between the days around midnight
		e := audittest.NewStory("t").Event(task.TaskRefused, 0, "")
		e.Time = audit.DayOf(time.Now()).Add(-time.Minute)
		if i > 20 || (i > 10 && i%2 == 0) {
			e.Time = audit.DayOf(time.Now())
		}
		r.Record(e0.Events(t, e))
	}
	today := Options{Since: time.Now()}
	rep := verify(t, pool, today)
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, 1, rep.Chains[0].From, "what comes before the first row of today is looked up")
	for _, c := range []struct {
		deleted int64
		found   bool
	}{{14, true}, {13, true}, {25, true}, {30, true}, {12, true}, {5, true}} {
		audittest.Execute(t, pool, fmt.Sprintf("CREATE TABLE saved AS SELECT * FROM audit_log WHERE chain_seq = %d", c.deleted))
		audittest.Execute(t, pool, "DELETE FROM audit_log WHERE chain_seq = $1", c.deleted)
		rep := verify(t, pool, today)
		require.Equal(t, c.found, !rep.OK(), "%d: %+v", c.deleted, rep.Findings)
		if c.found {
			require.Equal(t, []any{Missing, c.deleted}, []any{rep.Findings[0].Reason, rep.Findings[0].Seq}, "%+v", rep.Findings)
		}
		audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
		audittest.Execute(t, pool, "DROP TABLE saved")
	}
}

func TestMemoryIsBoundedOnADisorderedDisk(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	rig.Chained(t, pool)
	audittest.Execute(t, pool, "CREATE TABLE saved AS SELECT * FROM audit_log ORDER BY md5(row_hash::text)")
	audittest.Execute(t, pool, "TRUNCATE audit_log")
	audittest.Execute(t, pool, "INSERT INTO audit_log SELECT * FROM saved")
	require.True(t, verify(t, pool, Options{}).OK())
	_, err := Run(t.Context(), pool, Options{MaxSegments: 10}, nil)
	require.ErrorContains(t, err, "--since")
}

// TestAuditorsMayVerify verifies as the role that may read the whole table but no partition by its
// name.
func TestAuditorsMayVerify(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.Chained(t, pool)
	e0 := r.Owned("events", 0)
	for _, days := range []int{-2, -1, 400} { // the last one goes to the default partition
		e := audittest.NewStory("t").Event(task.TaskRefused, 0, "")
		e.Time = time.Now().Add(time.Duration(days) * audit.Day)
		r.Record(e0.Events(t, e))
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
	rep := verify(t, auditor, Options{})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	require.EqualValues(t, rig.RowsOfEvents0+rig.RowsOfEvents1+rig.RowsOfResults0+6, rep.Rows, "each row once; three are late, and each of these has another that says how far it was recorded")
	rep = verify(t, auditor, Options{Since: time.Now().Add(-audit.Day)})
	require.True(t, rep.OK(), "%+v", rep.Findings)
	audittest.Execute(t, pool, "DELETE FROM audit_log WHERE src_topic = 'events' AND src_partition = 0 AND chain_seq = 30")
	rep = verify(t, auditor, Options{})
	require.EqualValues(t, 1, rep.Count)
	require.Equal(t, Missing, rep.Findings[0].Reason)
}
