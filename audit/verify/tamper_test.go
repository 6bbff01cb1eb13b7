package verify

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/audit/recorder/statements"
	"github.com/batchyard/batchyard/audit/verify/tables"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/migrations"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

// The whole test is -tamper.cases=500 -tamper.seeds=5.
var (
	tamperCases = flag.Int("tamper.cases", 60, "ways of tampering for each seed")
	tamperSeeds = flag.Int("tamper.seeds", 1, "seeds")
	tamperSeed  = flag.Uint64("tamper.seed", 1, "the first seed")
	tamperOne   = flag.Int("tamper.one", -1, "run only this case")
)

// scene is a log with everything in it, which each case copies.
type scene struct {
	t    *testing.T
	url  string // of the database
	dir  string // of the checkpoints
	gaps map[GapKind]bool
}

// newScene records tasks in all states, callbacks, a job, a day that was dropped and a recorder's
// statements, and signs it.
func newScene(t *testing.T) *scene {
	t.Helper()
	w := &scene{t: t, dir: filepath.Join(t.TempDir(), "checkpoints"), url: testenv.Get(t).DatabaseFrom(t, "batchyard schema", migrations.Up), gaps: map[GapKind]bool{}}
	pool := audittest.PoolOn(t, w.url)
	g, r := rig.SigningIn(t, pool, w.dir), rig.New(t, pool)
	r.Key = g.Key()
	e0, e1, results := r.Own("events", 0), r.Own("events", 1), r.Own("results", 0)
	old := audittest.NewStory("old").Event(task.DeviceJoined, 0, "d1")
	old.TaskID, old.JobID = "", ""
	var late []*stream.Record // in one transaction, so that the row that says how far they were recorded is after them
	for i := range 3 {
		old.Time = time.Now().Add(-time.Duration(40-i) * audit.Day)
		late = append(late, e0.Events(t, old))
	}
	r.Record(late...)
	g.Seal()
	r.Record(e1.Events(t, jobSubmitted()))
	for i := range 8 {
		s := audittest.NewStory(fmt.Sprintf("t%d", i))
		s.Task.Callback = &task.Callback{URL: fmt.Sprintf("https://receiver.example/%d", i)}
		es, end := s.Life()
		r.Record(e0.Events(t, es[:3]...), e1.Events(t, es[3:]...), results.Result(t, end))
		sent := s.Event([]task.Action{task.CallbackSent, task.CallbackGivenUp}[i%2], 0, "")
		state := []string{"DELIVERED", "GIVEN_UP"}[i%2]
		sent.ResourceType, sent.ResourceID, sent.Detail = "callback", end.Run().CallbackID(), outcomeOf(end.Run(), state, 1)
		sent.Duration = time.Millisecond
		r.Record(e1.Events(t, sent))
		audittest.Execute(t, pool, "UPDATE callbacks SET state = $2, attempts = 1, last_status = 200 WHERE callback_id = $1", end.Run().CallbackID(), state)
		if i%3 == 0 {
			g.Seal()
		}
	}
	for i := range 4 {
		s := audittest.NewStory(fmt.Sprintf("w%d", i))
		es, _ := s.Life()
		r.Record(e0.Events(t, es[:1+i]...))
		f := audittest.NewStory(fmt.Sprintf("f%d", i))
		ended := f.Event(task.TaskFailed, 0, "")
		ended.ErrorClass, ended.Outcome = task.ClassDevice, task.OutcomeFailed
		bad := f.Result(task.Failed)
		bad.FinishedAt = ended.Time
		r.Record(e0.Events(t, f.Accepted(), ended), results.Result(t, bad))
	}
	g.Seal()
	require.NoError(t, r.DropDays(time.Now().Add(-30*audit.Day)))
	g.Flush()
	g.Seal()
	rep := w.verify(pool, w.dir)
	require.True(t, rep.OK(), "%+v", rep.Findings)
	for _, gap := range rep.Gaps {
		w.gaps[gap.Kind] = true
	}
	require.Equal(t, []GapKind{GapCopies, GapWitness}, slices.Sorted(maps.Keys(w.gaps)), "%+v", rep.Gaps)
	g.Resign()
	pool.Close()
	return w
}

// outcomeOf returns the detail of the event of a delivery that was answered with status 200.
func outcomeOf(run task.Run, state string, attempts int32) []byte {
	var f pg.Fields
	f.Text(run.CallbackID())
	f.Text(run.Tenant)
	f.Text(state)
	f.Int4(attempts)
	f.Int4(200)
	f.Null() // last_error
	f.Null() // delivered_at
	d := audit.DigestRow(audit.DeliveryRows, int64(attempts), f.B)
	return fmt.Appendf(nil, `{"delivery":%d,"digests":"%s","host":"receiver.example","status":200}`, attempts, audit.TextOfDigests(d.Append(nil)))
}

func jobSubmitted() task.Event {
	e := task.Event{Time: time.Now().Add(-2 * time.Hour).UTC().Truncate(time.Microsecond), Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser,
		ActorID: "alice", ResourceType: "job", ResourceID: "job-1", JobID: "job-1"}
	e.Detail = []byte(`{"sha256":"` + strings.Repeat("a1", 32) + `","tasks":4,"lines":5,"bad_lines":1,"bytes":99,"file":"n.jsonl","format":"openai"}`)
	return e
}

func (w *scene) verify(pool *pgxpool.Pool, dir string) *Report {
	w.t.Helper()
	key, err := audit.ReadPublicKeys(filepath.Join(dir, audit.PublicKeyFile))
	require.NoError(w.t, err)
	c := NewCheckpoints(key)
	require.NoError(w.t, c.Read(dir, FromDirectory))
	rep, err := Run(w.t.Context(), pool, Options{Checkpoints: c, Settled: true}, nil)
	require.NoError(w.t, err)
	return rep
}

// copyTo makes a copy of the database and of the checkpoints.
func (w *scene) copyTo(t *testing.T) (pool *pgxpool.Pool, dir string) {
	t.Helper()
	cfg, err := pgx.ParseConfig(w.url)
	require.NoError(t, err)
	admin, err := pgx.Connect(t.Context(), testenv.Get(t).PostgresURL)
	require.NoError(t, err)
	defer func() { _ = admin.Close(context.WithoutCancel(t.Context())) }()
	name := "tampered_" + strings.ToLower(strings.ReplaceAll(filepath.Base(t.TempDir()), "-", "_")) + fmt.Sprint(rand.Uint32())
	_, err = admin.Exec(t.Context(), fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", pgx.Identifier{name}.Sanitize(), pgx.Identifier{cfg.Database}.Sanitize()))
	require.NoError(t, err)
	pool = audittest.PoolOn(t, strings.Replace(w.url, "/"+cfg.Database, "/"+name, 1))
	t.Cleanup(func() {
		pool.Close()
		conn, err := pgx.Connect(context.Background(), testenv.Get(t).PostgresURL)
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(context.Background(), "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
		require.NoError(t, err)
	})
	dir = filepath.Join(t.TempDir(), "checkpoints")
	require.NoError(t, os.CopyFS(dir, os.DirFS(w.dir)))
	return pool, dir
}

// fingerprint returns a digest of everything that verification claims to prove: the columns that it
// declares unprovable are left out.
func fingerprint(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT c.oid::regclass::text, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition GROUP BY c.oid ORDER BY 1`)
	require.NoError(t, err)
	type table struct {
		Name    string
		Columns []string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[table])
	require.NoError(t, err)
	out := ""
	for _, tab := range all {
		columns := slices.DeleteFunc(tab.Columns, func(c string) bool {
			return slices.ContainsFunc(tables.Bookkeeping, func(u struct {
				Table   string
				Columns []string
			}) bool {
				return "public."+u.Table == tab.Name || u.Table == tab.Name && slices.Contains(u.Columns, c)
			})
		})
		if tab.Name == "stream_offsets" {
			tab.Name += " WHERE next_offset >= 0" // others say nothing
		}
		if tab.Name == "batchyard_schema" || tab.Name == "audit_checkpoints" {
			continue
		}
		out += tab.Name + audittest.One[string](t, pool, fmt.Sprintf(`SELECT coalesce(md5(string_agg(r::text, '|' ORDER BY r::text)), '') FROM (SELECT row(%s)::text FROM %s) q (r)`,
			strings.Join(columns, ", "), tab.Name)) + "\n"
	}
	require.NoError(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		d, _, err := migrations.ReadDefinitions(t.Context(), tx, "public")
		out += d.Digest()
		return err
	}))
	return out + audittest.One[string](t, pool, "SELECT coalesce(string_agg(setconfig::text, ''), '') FROM pg_db_role_setting d JOIN pg_database b ON b.oid = d.setdatabase WHERE datname = current_database()")
}

// tampering is one case.
type tampering struct {
	t    *testing.T
	r    *rand.Rand
	pool *pgxpool.Pool
	dir  string // of the checkpoints
	did  []string
}

// do executes statements with superuser rights, and reports whether Postgres accepted them.
func (x *tampering) do(sql string, args ...any) bool {
	x.did = append(x.did, sql)
	_, err := x.pool.Exec(x.t.Context(), sql, args...)
	return err == nil
}

var tampered = []string{"audit_log", "audit_log", "audit_log", "audit_chains", "audit_tree", "audit_dropped", "audit_statements", "stream_breaks", "stream_offsets", "results", "results", "tasks", "tasks",
	"callbacks", "callbacks", "jobs", "rollup_usage", "rollup_latency", "rollup_attempts", "rollup_batches", "rollup_submissions"}

// rows returns the positions on disk of some rows of a table.
func (x *tampering) rows(table string, n int) string {
	ids, err := pgx.CollectRows(must(x.pool.Query(x.t.Context(), "SELECT tableoid::regclass || ' ' || ctid FROM "+table+" ORDER BY 1")), pgx.RowTo[string])
	require.NoError(x.t, err)
	if len(ids) == 0 {
		return "false"
	}
	var ors []string
	at := x.r.IntN(len(ids))
	for i := range n {
		k := at + i
		if x.r.IntN(2) == 0 {
			k = x.r.IntN(len(ids))
		}
		part, place, _ := strings.Cut(ids[k%len(ids)], " ")
		ors = append(ors, fmt.Sprintf("(tableoid = '%s'::regclass AND ctid = '%s')", part, place))
	}
	return strings.Join(ors, " OR ")
}

func must(rows pgx.Rows, err error) pgx.Rows {
	if err != nil {
		panic(err)
	}
	return rows
}

// column returns a random column of a table, and a value for it.
func (x *tampering) column(table string) (name, value string) {
	type column struct{ Name, Type string }
	all, err := pgx.CollectRows(must(x.pool.Query(x.t.Context(), "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum", table)), pgx.RowToStructByPos[column])
	require.NoError(x.t, err)
	c := all[x.r.IntN(len(all))]
	values := map[string][]string{
		"text": {"''", "'forged'", "C || 'x'", "'SUCCESS'", "'FAILED'", "'acme'", "repeat('x', 70000)", "'task.accepted'"}, "json": {`'{}'`, `'{"answer":43}'`, `'{"delivery":9}'`, `'{"a":"\u0000"}'`, "'null'"},
		"integer": {"C + 1", "-1", "0", "2147483647", "-2147483648"}, "bigint": {"C + 1", "C - 1", "-1", "9223372036854775807", "-9223372036854775808"}, "smallint": {"C + 1", "-1", "32767", "23"},
		"double precision": {"C + 1", "'NaN'", "'infinity'", "0"}, "bytea": {`'\x'`, `decode(repeat('0', 64), 'hex')`, `sha256('x')`},
		"timestamp with time zone": {"C + interval '1 microsecond'", "C - interval '1 day'", "'infinity'", "'-infinity'", "'4713-01-01 BC'", "'294276-01-01'", "now()"}, "date": {"C + 1", "C - 30", "'infinity'", "'4713-01-01 BC'"}, "boolean": {"NOT C"},
	}[c.Type]
	values = append(values, "NULL", "(SELECT o."+c.Name+" FROM "+table+" o ORDER BY random() LIMIT 1)")
	return c.Name, strings.ReplaceAll(values[x.r.IntN(len(values))], "C", c.Name)
}

const tail0 = "src_topic = 'events' AND src_partition = 0"

// methods are the ways of tampering.
var methods = []func(x *tampering) bool{
	func(x *tampering) bool { // some values of some rows
		table := tampered[x.r.IntN(len(tampered))]
		var set []string
		for range 1 + x.r.IntN(2) {
			name, value := x.column(table)
			set = append(set, name+" = "+value)
		}
		return x.do("UPDATE " + table + " SET " + strings.Join(set, ", ") + " WHERE " + x.rows(table, 1+x.r.IntN(4)))
	},
	func(x *tampering) bool { // one column of all rows
		table := tampered[x.r.IntN(len(tampered))]
		name, value := x.column(table)
		return x.do("UPDATE " + table + " SET " + name + " = " + value)
	},
	func(x *tampering) bool { // rows are deleted
		table := tampered[x.r.IntN(len(tampered))]
		return x.do("DELETE FROM " + table + " WHERE " + x.rows(table, 1+x.r.IntN(5)))
	},
	func(x *tampering) bool { // all rows are deleted
		return x.do("TRUNCATE " + tampered[x.r.IntN(len(tampered))])
	},
	func(x *tampering) bool { // a row is copied and changed
		table := tampered[x.r.IntN(len(tampered))]
		if !x.do("CREATE TEMP TABLE IF NOT EXISTS nothing (n int)") || !x.do("CREATE TABLE loot AS SELECT * FROM "+table+" WHERE "+x.rows(table, 1)) {
			return false
		}
		for range 1 + x.r.IntN(3) {
			name, value := x.column(table)
			x.do("UPDATE loot SET " + name + " = " + value)
		}
		ok := x.do("INSERT INTO " + table + " SELECT * FROM loot")
		return x.do("DROP TABLE loot") && ok
	},
	func(x *tampering) bool { // values of two rows are swapped
		table := tampered[x.r.IntN(len(tampered))]
		name, _ := x.column(table)
		return x.do(fmt.Sprintf("WITH v AS (SELECT array_agg(%[1]s) AS a FROM (SELECT %[1]s FROM %[2]s WHERE %[3]s LIMIT 2) q) UPDATE %[2]s SET %[1]s = CASE WHEN %[1]s = v.a[1] THEN v.a[2] ELSE v.a[1] END FROM v WHERE %[1]s = ANY (v.a)",
			name, table, x.rows(table, 2)))
	},
	func(x *tampering) bool { // rows are changed, and the chain recomputed
		end := audittest.One[int64](x.t, x.pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		from := int64(4) + x.r.Int64N(end-4)
		name, value := x.column("audit_log")
		if slices.Contains([]string{"chain_seq", "prev_hash", "row_hash", "src_topic", "src_partition", "time"}, name) || !x.do("UPDATE audit_log SET "+name+" = "+value+" WHERE "+tail0+fmt.Sprintf(" AND chain_seq = %d", from)) {
			return false
		}
		x.did = append(x.did, "rehash")
		rehash(x.t, x.pool, from, end, true)
		return true
	},
	func(x *tampering) bool { // the newest rows go, consistently
		n := 1 + x.r.IntN(5)
		ok := x.do(fmt.Sprintf("DELETE FROM audit_log a USING audit_chains c WHERE c.topic = a.src_topic AND c.partition = a.src_partition AND %s AND a.chain_seq > c.rows - %d", tail0, n)) &&
			x.do("UPDATE audit_chains c SET rows = a.chain_seq, hash = a.row_hash FROM audit_log a WHERE "+tail0+" AND topic = 'events' AND partition = 0 AND a.chain_seq = (SELECT max(chain_seq) FROM audit_log WHERE "+tail0+")")
		retree(x.t, x.pool)
		return ok
	},
	func(x *tampering) bool { // a row is appended, correctly hashed
		if !x.do("INSERT INTO audit_log SELECT * FROM audit_log WHERE "+tail0+" ORDER BY chain_seq DESC LIMIT 1") ||
			!x.do("UPDATE audit_log SET chain_seq = chain_seq + 1, src_offset = src_offset + 1, src_index = 0, actor_id = 'mallory', row_digests = NULL WHERE ctid = (SELECT max(ctid) FROM audit_log WHERE "+tail0+" AND chain_seq = (SELECT max(chain_seq) FROM audit_log WHERE "+tail0+")) AND "+tail0) ||
			!x.do("UPDATE audit_chains SET rows = rows + 1 WHERE topic = 'events' AND partition = 0") {
			return false
		}
		end := audittest.One[int64](x.t, x.pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		rehash(x.t, x.pool, end, end, true)
		return true
	},
	func(x *tampering) bool { // rows are called dropped by retention
		end := audittest.One[int64](x.t, x.pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		from := int64(4) + x.r.Int64N(end-4)
		to := min(end, from+x.r.Int64N(6))
		return x.do(fmt.Sprintf(`INSERT INTO audit_dropped SELECT current_date - %d, 'events', 0, %d, %d, f.prev_hash, l.row_hash, now() - interval '3 hours' FROM audit_log f, audit_log l
			WHERE f.src_topic = 'events' AND f.src_partition = 0 AND l.src_topic = 'events' AND l.src_partition = 0 AND f.chain_seq = %d AND l.chain_seq = %d`, 35+x.r.IntN(9), from, to, from, to)) &&
			x.do(fmt.Sprintf("DELETE FROM audit_log WHERE %s AND chain_seq BETWEEN %d AND %d", tail0, from, to))
	},
	func(x *tampering) bool { // the log is emptied and claimed to be dropped
		return x.do(`INSERT INTO audit_dropped SELECT '2020-01-01', topic, partition, 4, rows, sha256('x'), hash FROM audit_chains ON CONFLICT DO NOTHING`) && x.do("TRUNCATE audit_log")
	},
	func(x *tampering) bool { // definitions
		return x.do([]string{
			"CREATE OR REPLACE VIEW user_actions AS SELECT time, tenant, actor_id, source_addr, user_agent, action, outcome, error_class, resource_type, resource_id, task_id, job_id, device_id, trace_id, detail FROM audit_log WHERE actor_type = 'user' AND action <> 'task.accepted' AND actor_id <> 'mallory'",
			"CREATE SCHEMA clean; CREATE TABLE clean.audit_log AS TABLE public.audit_log", "CREATE SCHEMA clean; CREATE VIEW clean.refusals AS SELECT * FROM public.refusals LIMIT 0",
			"DO $$ BEGIN EXECUTE format('CREATE SCHEMA clean; ALTER DATABASE %I SET search_path = clean, public', current_database()); END $$",
			"CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN RETURN NULL; END $f$; CREATE TRIGGER forge BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION forge()",
			"ALTER TABLE results ENABLE ROW LEVEL SECURITY", "CREATE RULE hide AS ON INSERT TO callbacks DO INSTEAD NOTHING", "ALTER TABLE audit_log DETACH PARTITION audit_log_default", "CREATE TABLE more () INHERITS (tasks)",
			"ALTER TABLE results ALTER COLUMN output TYPE jsonb USING output::jsonb", "ALTER TABLE tasks DROP CONSTRAINT tasks_answers_its_request", "ALTER TABLE audit_log ALTER COLUMN outcome SET DEFAULT 'ok'",
			"CREATE OR REPLACE FUNCTION batchyard_bucket(us bigint) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 1::smallint $$", "CREATE FUNCTION public.lower(bytea) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
			"ALTER TABLE results RENAME TO answers", "ALTER TABLE audit_log DROP COLUMN user_agent CASCADE", "ALTER TABLE audit_statements ALTER COLUMN statement TYPE bytea USING statement::bytea", "DROP VIEW refusals",
		}[x.r.IntN(18)])
	},
	func(x *tampering) bool { // statements
		return x.do([]string{
			"DELETE FROM audit_statements WHERE number = (SELECT max(number) FROM audit_statements)", "INSERT INTO audit_statements SELECT number + 9, kind, noted_at, statement FROM audit_statements LIMIT 1",
			"INSERT INTO audit_statements SELECT number + 3, kind, noted_at, replace(statement, '\"number\":2', '\"number\":5') FROM audit_statements WHERE number = 2", "UPDATE audit_statements SET statement = replace(statement, '\"rows\":1', '\"rows\":9') WHERE number > 1",
			"INSERT INTO stream_breaks VALUES ('events', 0, 'recorded_again', 5, 1, 9, now(), 'audit@x', NULL)",
			"INSERT INTO stream_breaks VALUES ('events', 0, 'topic_replaced', 5, 1, NULL, now(), 'audit@x', NULL)",
		}[x.r.IntN(6)])
	},
	func(x *tampering) bool { // records are left out, or recorded again
		by, at := 1+x.r.Int64N(5), x.rows("stream_offsets", 1)
		if x.r.IntN(2) == 0 {
			by = -by
		}
		return x.do(fmt.Sprintf("UPDATE stream_offsets SET next_offset = next_offset + %d WHERE %s", by, at))
	},
	func(x *tampering) bool { // someone with the key says that rows were recorded again
		key, err := audit.LoadSigningKey(filepath.Join(x.dir, audit.SigningKeyFile))
		require.NoError(x.t, err)
		end := audittest.One[int64](x.t, x.pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		from := int64(4) + x.r.Int64N(end-4)
		if !x.do("UPDATE audit_log SET actor_id = 'mallory' WHERE " + tail0 + fmt.Sprintf(" AND chain_seq = %d", from)) {
			return false
		}
		x.did = append(x.did, "rehash, state that it was recorded again")
		rehash(x.t, x.pool, from, end, true)
		b := audit.Break{Kind: audit.RecordedAgain, Topic: "events", Seq: max(1, from-x.r.Int64N(2)), LostRows: x.r.Int64N(end), ActorID: "audit@test-1", Time: time.Now().UTC().Truncate(time.Millisecond)}
		b.First = audittest.One[int64](x.t, x.pool, "SELECT src_offset FROM audit_log WHERE "+tail0+" AND chain_seq = $1", from)
		b.Last = b.First + x.r.Int64N(9)
		require.NoError(x.t, pgx.BeginFunc(x.t.Context(), x.pool, func(tx pgx.Tx) error {
			return statements.Append(x.t.Context(), tx, key, &audit.Statement{Kind: audit.RecordingInterrupted, ActorID: b.ActorID, Break: &b})
		}))
		return x.do("INSERT INTO stream_breaks (topic, partition, kind, chain_seq, first_offset, last_offset, noticed_at, actor_id) VALUES ('events', 0, 'recorded_again', $1, $2, $3, $4, $5)", b.Seq, b.First, b.Last, b.Time, b.ActorID)
	},
	func(x *tampering) bool { // rows are moved to an old day, for the recorder to drop them
		end := audittest.One[int64](x.t, x.pool, "SELECT rows FROM audit_chains WHERE topic = 'events' AND partition = 0")
		ok := x.do(fmt.Sprintf("UPDATE audit_log SET time = time - interval '50 days' WHERE %s AND chain_seq > %d", tail0, end-1-x.r.Int64N(5)))
		key, err := audit.LoadSigningKey(filepath.Join(x.dir, audit.SigningKeyFile))
		require.NoError(x.t, err)
		r := rig.New(x.t, x.pool)
		r.Key = key
		_ = r.DropDays(time.Now().Add(-30 * audit.Day))
		return ok
	},
}

// TestTamperingIsFoundOrDeclaredUnprovable tampers at random with superuser rights, at rest and while
// a recorder runs. Each time something changed that verification claims to prove, it must be found, or
// declared unprovable beyond what is so for a log that is intact.
func TestTamperingIsFoundOrDeclaredUnprovable(t *testing.T) {
	t.Parallel()
	w := newScene(t)
	for seed := *tamperSeed; seed < *tamperSeed+uint64(*tamperSeeds); seed++ {
		kinds := map[Verdict]int{}
		for i := range *tamperCases {
			if *tamperOne < 0 || i == *tamperOne {
				kinds[w.tamper(t, seed, i)]++
			}
		}
		t.Logf("seed %d: %v", seed, kinds)
	}
}

// tamper runs one case, and returns what verification made of it.
func (w *scene) tamper(t *testing.T, seed uint64, i int) (verdict Verdict) {
	t.Run(fmt.Sprintf("%d/%d", seed, i), func(t *testing.T) {
		w := &scene{t: t, url: w.url, dir: w.dir, gaps: w.gaps} // whose failures are of this case
		x := &tampering{t: t, r: rand.New(rand.NewPCG(seed, uint64(i)))}
		x.pool, x.dir = w.copyTo(t)
		before := fingerprint(t, x.pool)
		for try := 0; ; try++ {
			method := methods[x.r.IntN(len(methods))]
			if method(x) && !unchanged(t, x.pool, before) {
				break
			}
			if try == 50 {
				t.Fatal("nothing was changed")
			}
		}
		live := x.r.IntN(3) == 0
		if live {
			w.goOn(t, x)
		}
		allowed := slices.Collect(maps.Keys(w.gaps))
		rep := w.verify(x.pool, x.dir)
		verdict = rep.Verdict(allowed...)
		require.NotEqual(t, Well, verdict, "live %v: %s\n%+v", live, strings.Join(x.did, ";\n"), rep)
	})
	return verdict
}

// unchanged reports whether the database is as it was before.
func unchanged(t *testing.T, pool *pgxpool.Pool, before string) bool {
	return fingerprint(t, pool) == before
}

// goOn lets a recorder record more, and sign it. It may be unable to.
func (w *scene) goOn(t *testing.T, x *tampering) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	rec := recorder.NewDirect(recorder.Config{}, recorder.Deps{Pool: x.pool, Instance: "audit@test-2"})
	next, err := rec.Acquire(ctx, "events", 0)
	if err == nil {
		frame, err := wire.EncodeFrame(wire.FrameEvents, []task.Event{audittest.NewStory("later").Accepted()})
		require.NoError(t, err)
		_ = rec.Record(ctx, &stream.Record{Topic: "events", Offset: max(next, 0), Value: frame})
	}
	g := rig.SigningIn(t, x.pool, x.dir)
	g.Seal()
	g.Resign()
}
