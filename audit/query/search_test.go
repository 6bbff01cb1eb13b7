package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// found returns what a search finds, as task/action.
func found(t *testing.T, l *Reader, f Filter) []string {
	t.Helper()
	out := []string{}
	require.NoError(t, l.Search(t.Context(), f, func(r *Row) error {
		out = append(out, r.TaskID+"/"+strings.TrimPrefix(r.Action, "task."))
		return nil
	}))
	return out
}

func TestSearch(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	events := r.Own("events", 0)
	one, two := audittest.NewStory("one"), audittest.NewStory("two")
	two.Task.Tenant, two.Task.JobID = "other", "job_2"
	accepted := one.Accepted()
	failed := one.Event(task.AttemptFailed, 1, "d1")
	failed.Outcome, failed.ErrorClass, failed.BatchID = task.OutcomeFailed, task.ClassDevice, "b1"
	kafka := two.Event(task.TaskQueued, 0, "")
	kafka.SourceAddr, kafka.Model, kafka.TraceID = "kafka:tasks.normal/3@42", "m_x", "abc"
	old, future := audittest.NewStory("old").Accepted(), audittest.NewStory("future").Accepted()
	old.Time, future.Time = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), time.Now().Add(30*24*time.Hour)
	week := audittest.NewStory("week").Accepted()
	week.Time = time.Now().Add(-7 * 24 * time.Hour)
	r.Record(events.Events(t, old, future, week, accepted, failed, kafka)) // the last is recent: it gets the digests
	l := NewReader(r.Pool)

	everything := []string{"old/accepted", "week/accepted", "one/accepted", "two/queued", "one/attempt.failed", "future/accepted"}
	got := found(t, l, Filter{Oldest: true})
	require.ElementsMatch(t, everything, got)
	require.Equal(t, "old/accepted", got[0], "from the default partition")
	require.Equal(t, "future/accepted", got[5])
	newest := found(t, l, Filter{})
	slices.Reverse(newest)
	require.Equal(t, got, newest, "the other way round")
	require.Equal(t, []string{"future/accepted"}, found(t, l, Filter{Limit: 1}))
	require.Equal(t, got[:3], found(t, l, Filter{Limit: 3, Oldest: true}))

	for _, c := range []struct {
		f    Filter
		want []string
	}{
		{Filter{Tenant: "other"}, []string{"two/queued"}},
		{Filter{Tenant: "o*", Actions: []string{"task.*"}}, []string{"two/queued"}},
		{Filter{Task: "one", Oldest: true}, []string{"one/accepted", "one/attempt.failed"}},
		{Filter{Task: "one", Limit: 1}, []string{"one/attempt.failed"}},
		{Filter{Job: "job_2"}, []string{"two/queued"}},
		{Filter{Job: "job_*"}, []string{"two/queued"}}, // _ is no wildcard
		{Filter{Batch: "b1"}, []string{"one/attempt.failed"}},
		{Filter{Device: "d1"}, []string{"one/attempt.failed"}},
		{Filter{Actions: []string{"*.failed", "task.queued"}, Oldest: true, Task: "one"}, []string{"one/attempt.failed"}},
		{Filter{Actor: "stage@*", Outcome: "failed"}, []string{"one/attempt.failed"}},
		{Filter{Class: string(task.ClassDevice)}, []string{"one/attempt.failed"}},
		{Filter{Model: "m_x", Trace: "abc"}, []string{"two/queued"}},
		{Filter{Source: "kafka:tasks.normal"}, []string{"two/queued"}},
		{Filter{Source: "203.0.113.7", Task: "one"}, []string{"one/accepted"}},
		{Filter{Source: "203.0.113.7:4711", Task: "one"}, []string{"one/accepted"}},
		{Filter{Source: "203.0.113", Task: "one"}, []string{}},
		{Filter{Until: time.Date(2002, 1, 1, 0, 0, 0, 0, time.UTC)}, []string{"old/accepted"}},
		{Filter{Since: time.Now().Add(time.Hour)}, []string{"future/accepted"}},
		{Filter{Since: accepted.Time, Until: accepted.Time.Add(time.Millisecond), Task: "one"}, []string{"one/accepted"}},
		{Filter{Since: time.Now().Add(-8 * 24 * time.Hour), Until: time.Now().Add(-6 * 24 * time.Hour)}, []string{"week/accepted"}},
	} {
		require.Equalf(t, c.want, found(t, l, c.f), "%+v", c.f)
	}
	require.ErrorContains(t, l.Search(t.Context(), Filter{Actions: []string{"nope"}}, nil), `unknown action "nope"`)
	enough := errors.New("enough")
	require.Equal(t, enough, l.Search(t.Context(), Filter{}, func(*Row) error { return enough }))
}

// with returns a connection URL with one more parameter.
func with(t *testing.T, connection, name, value string) string {
	t.Helper()
	u, err := url.Parse(connection)
	require.NoError(t, err)
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// follower collects what Follow passes on.
type follower struct {
	mu   sync.Mutex
	rows []Row
	gone int64
	away int
	news chan struct{}
}

func newFollower() *follower { return &follower{news: make(chan struct{}, 1)} }

func (f *follower) followed() Handler {
	tell := func() {
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
	return Handler{
		Row: func(r *Row) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.rows = append(f.rows, *r)
			tell()
			return nil
		},
		Missing:     func(_ string, n int64) { f.mu.Lock(); defer f.mu.Unlock(); f.gone += n; tell() },
		Unavailable: func(error, time.Time) { f.mu.Lock(); defer f.mu.Unlock(); f.away++; tell() },
	}
}

func (f *follower) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	for {
		f.mu.Lock()
		ok := holds()
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-f.news:
		case <-end:
			f.mu.Lock()
			defer f.mu.Unlock()
			t.Fatalf("waited in vain for %s: %d rows, %d missing, %d times away", what, len(f.rows), f.gone, f.away)
		}
	}
}

// follow follows until the test ends.
func follow(t *testing.T, l *Reader, s Filter) *follower {
	t.Helper()
	f := newFollower()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Follow(ctx, s, f.followed()) }()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	return f
}

// Several recorders write, with clocks that are wrong, while connections are lost: each row is
// passed on once.
func TestFollowMissesNothingAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	before := rig.New(t, pool)
	part := before.Own("events", 0)
	before.Record(part.Events(t, audittest.NewStory("before-1").Accepted(), audittest.NewStory("before-2").Accepted(), audittest.NewStory("before-3").Accepted()))
	l := NewReader(audittest.PoolOn(t, with(t, pool.Config().ConnString(), "application_name", "follower")))
	f := follow(t, l, Filter{Limit: 2})
	f.until(t, "the existing rows", func() bool { return len(f.rows) == 2 })
	require.Equal(t, "before-2", f.rows[0].TaskID)

	const writers, chunks, each = 3, 25, 7
	var wg sync.WaitGroup
	for w := range writers {
		r := rig.New(t, pool)
		mine := r.Own("events", w+1)
		wg.Go(func() {
			for c := range chunks {
				var es []task.Event
				for e := range each {
					ev := audittest.NewStory(fmt.Sprintf("w%d-%d-%d", w, c, e)).Accepted()
					switch e { // late, much too late, and from the future
					case 1:
						ev.Time = time.Now().Add(-3 * time.Hour)
					case 2:
						ev.Time = time.Now().Add(-40 * 24 * time.Hour)
					case 3:
						ev.Time = time.Now().Add(50 * 24 * time.Hour)
					}
					es = append(es, ev)
				}
				r.Record(mine.Events(t, es...))
				if w == 0 && c%10 == 5 {
					_, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'follower'")
					require.NoError(t, err)
				}
			}
		})
	}
	wg.Wait()
	f.until(t, "all rows", func() bool { return len(f.rows) >= 2+writers*chunks*each })
	before.Record(part.Events(t, audittest.NewStory("last").Accepted()))
	f.until(t, "one more", func() bool { return f.rows[len(f.rows)-1].TaskID == "last" })
	times := map[string]int{}
	for _, r := range f.rows {
		times[r.TaskID]++
	}
	require.Len(t, times, 3+writers*chunks*each)
	require.Equal(t, []int{1}, slices.Compact(slices.Sorted(maps.Values(times))))
	require.Zero(t, f.gone)
}

// After a backup was restored numbers are used again, also while other chains grow.
func TestFollowContinuesAfterARestore(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	r := rig.New(t, pool)
	e0, e1 := r.Own("events", 0), r.Own("events", 1)
	r.Record(e0.Events(t, audittest.NewStory("restored").Accepted()))
	l := NewReader(pool)
	seen := map[audit.TopicPartition]int64{e0.TopicPartition: 100}
	var got []string
	out := Handler{Row: func(row *Row) error { got = append(got, row.TaskID); return nil }, Missing: func(string, int64) { t.Error("nothing is missing") }}
	for _, part := range []*rig.Partition{e1, e0} {
		r.Record(part.Events(t, audittest.NewStory("new in "+part.String()).Accepted()))
		require.NoError(t, l.snapshot(t.Context(), func(tx pgx.Tx) error {
			_, err := l.showNew(t.Context(), tx, &Filter{}, seen, out)
			return err
		}))
	}
	require.Equal(t, []string{"new in events/1", "new in events/0"}, got)
}

func TestFollowFiltersAndReportsMissingRows(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	part := r.Own("events", 0)
	f := follow(t, NewReader(r.Pool), Filter{Actions: []string{"task.queued"}, Limit: 10})
	f.until(t, "that it follows", func() bool { return true })
	s := audittest.NewStory("s")
	r.Record(part.Events(t, s.Accepted(), s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskAssigned, 1, "d")))
	f.until(t, "the row", func() bool { return len(f.rows) == 1 })
	require.Equal(t, "task.queued", f.rows[0].Action)
	// The chain claims five rows, and there are three.
	_, err := r.Pool.Exec(t.Context(), "UPDATE audit_chains SET rows = rows + 2")
	require.NoError(t, err)
	f.until(t, "the missing rows", func() bool { return f.gone == 2 })
}

func TestStats(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	part := r.Own("events", 3)
	s := audittest.NewStory("s")
	old := audittest.NewStory("old").Accepted()
	old.Time = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	first := s.Accepted()
	r.Record(part.Events(t, old, first, s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskQueued, 0, "")))
	got, err := NewReader(r.Pool).Stats(t.Context(), 3)
	require.NoError(t, err)
	require.Equal(t, int64(1), got.InDefault)
	require.Equal(t, []ActionRow{
		{first.Time.Format(time.DateOnly), "task.queued", "ok", 2}, {first.Time.Format(time.DateOnly), "task.accepted", "ok", 1},
	}, got.Actions)
	require.True(t, got.Oldest.Equal(first.Time), "%s", got.Oldest)
	require.True(t, got.Newest.After(*got.Oldest))
	require.Len(t, got.Chains, 1)
	require.Equal(t, int64(4), got.Chains[0].Rows)
	require.Equal(t, int64(1), got.Chains[0].Next)
}

// What was written since Postgres analyzed a day counts, too.
func TestStatsOfADayThatGrows(t *testing.T) {
	t.Parallel()
	pool := audittest.NewPool(t)
	const few, many = 1000, 60_000
	add := func(n int) {
		_, err := pool.Exec(t.Context(), `INSERT INTO audit_log (time, tenant, actor_type, actor_id, action, outcome, detail, src_topic, src_partition, src_offset, src_index)
			SELECT now(), 'acme', 'stage', 'router@test-1', 'task.queued', 'ok', '{"why":"a hundred bytes and some more, so that not all of the rows are on the pages that are read"}', 'events', 0, 0, n FROM generate_series(1, $1) n`, n)
		require.NoError(t, err)
	}
	_, err := pool.Exec(t.Context(), "SELECT batchyard_make_audit_partition((now() AT TIME ZONE 'UTC')::date)")
	require.NoError(t, err)
	add(few)
	_, err = pool.Exec(t.Context(), "ANALYZE audit_log")
	require.NoError(t, err)
	add(many)
	got, err := NewReader(pool).Stats(t.Context(), 3)
	require.NoError(t, err)
	require.InEpsilon(t, few+many, got.Rows, 0.05)
	require.Len(t, got.Actions, 1)
	require.InEpsilon(t, few+many, got.Actions[0].Rows, 0.05)
}

// An auditor can read, and nothing else.
func TestTheRoleOfAuditorsSuffices(t *testing.T) {
	t.Parallel()
	r := rig.New(t, audittest.NewPool(t))
	part := r.Own("events", 0)
	r.Record(part.Events(t, audittest.NewStory("s").Accepted()))
	as := audittest.PoolOn(t, with(t, r.Pool.Config().ConnString(), "role", "batchyard_auditor"))
	l := NewReader(as)
	require.Equal(t, []string{"s/accepted"}, found(t, l, Filter{}))
	stats, err := l.Stats(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, int64(1), stats.Actions[0].Rows)
	f := follow(t, l, Filter{Limit: 5})
	f.until(t, "the row", func() bool { return len(f.rows) == 1 })
	_, err = as.Exec(t.Context(), "DELETE FROM audit_log")
	require.ErrorContains(t, err, "permission denied")
}

func withChain(r *Row) *OCSF {
	o := r.OCSF("1.2.3")
	o.AddChain(r)
	return o
}

// What the schema, in version 1.7.0, requires of every event of this class.
func TestOCSFHasWhatTheSchemaRequires(t *testing.T) {
	t.Parallel()
	s := audittest.NewStory("s")
	full := Row{Time: time.Now(), IngestedAt: time.Now(), SrcTopic: "events", ChainSeq: 7, Detail: Raw(`{"why":"x"}`), TraceID: "t"}
	for _, a := range task.Actions {
		for _, who := range []struct{ kind, id, addr string }{
			{"user", "acme", "203.0.113.7:4711"}, {"user", "acme", "[2001:db8::1]:80"}, {"user", "acme", "host-1"}, {"user", "", ""},
			{"stage", "router@host-a-12", ""}, {"stage", "router@host-a-12", "kafka:tasks.low/1@2"}, {"device", "d1", "10.0.0.1"},
		} {
			for _, outcome := range []string{"ok", "failed", "refused"} {
				r := full
				r.Action, r.Outcome, r.ActorType, r.ActorID, r.SourceAddr = string(a.Action), outcome, who.kind, who.id, who.addr
				r.TaskID, r.ResourceType, r.ResourceID = s.Task.ID, "task", s.Task.ID
				b, err := json.Marshal(withChain(&r))
				require.NoError(t, err)
				var e map[string]any
				require.NoError(t, json.Unmarshal(b, &e))
				for _, field := range []string{"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid", "actor", "api", "src_endpoint"} {
					require.Containsf(t, e, field, "%s", b)
				}
				at := func(object, field string) any { return e[object].(map[string]any)[field] }
				require.Equal(t, "1.7.0", at("metadata", "version"))
				require.Equal(t, "Batchyard", at("metadata", "product").(map[string]any)["name"])
				require.Equal(t, string(a.Action), at("api", "operation"))
				require.Equal(t, "t", at("api", "request").(map[string]any)["uid"])
				require.EqualValues(t, 6, e["category_uid"])
				require.EqualValues(t, 6003, e["class_uid"])
				require.EqualValues(t, 600300+e["activity_id"].(float64), e["type_uid"])
				require.Contains(t, []float64{1, 2, 3, 4, 99}, e["activity_id"])
				require.Contains(t, []float64{1, 2}, e["status_id"])
				require.EqualValues(t, r.Time.UnixMilli(), e["time"])
				some := func(object string, fields ...string) {
					t.Helper()
					for _, f := range fields {
						if v := at(object, f); v != nil && v != "" {
							return
						}
					}
					require.Failf(t, "one of these is required", "%s %v: %s", object, fields, b)
				}
				some("actor", "process", "user", "iam_role", "invoked_by", "session", "app_name", "app_uid")
				some("src_endpoint", "ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name", "domain")
				if user, ok := at("actor", "user").(map[string]any); ok {
					require.NotEmpty(t, user["name"])
				}
				require.Equal(t, "x", at("unmapped", "detail").(map[string]any)["why"])
			}
		}
	}
}
