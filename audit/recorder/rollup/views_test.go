package rollup_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/rollup"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/audittest"
	"github.com/batchyard/batchyard/test/audittest/rig"
)

// zones are the time zones of sessions: none of them may change what a view says.
var zones = []string{"UTC", "America/Los_Angeles", "Asia/Kathmandu"}

// TestViewsAgreeWithTheRows computes what each view says from the raw rows of random traffic, in the simplest way,
// for sessions in several time zones, before and after the rollups were compacted.
func TestViewsAgreeWithTheRows(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			pool := audittest.NewPool(t)
			traffic(t, pool, rand.New(rand.NewPCG(seed, 13)))
			for _, compacted := range []bool{false, true} {
				if compacted {
					require.NoError(t, rollup.Compact(t.Context(), pool, 90*audit.Day))
					require.NoError(t, rollup.Compact(t.Context(), pool, 90*audit.Day), "the second time deletes hours")
				}
				for _, zone := range zones {
					look(t, pool, zone, compacted)
				}
			}
		})
	}
}

// traffic records random traffic of six days.
func traffic(t *testing.T, pool *pgxpool.Pool, r *rand.Rand) {
	t.Helper()
	now := time.Now().UTC()
	from := now.Add(-6 * audit.Day)
	for writer := range 2 { // two recorders, each with its own partitions
		rig := rig.New(t, pool)
		events, results := rig.Own("events", writer), rig.Own("results", writer)
		for i := range 30 {
			var c []*stream.Record
			for j := range 5 {
				at := from.Add(time.Duration(r.Int64N(int64(6*audit.Day - time.Minute))))
				es, rs := audittest.RandomTask(r, fmt.Sprint(writer, "-", i, "-", j), at)
				c = append(c, events.Events(t, es...))
				for _, res := range rs {
					c = append(c, results.Result(t, res))
				}
			}
			rig.Record(c...)
		}
		if writer == 0 {
			rig.Record(events.Events(t, audittest.RandomFleet(r, from, now)...), events.Events(t, audittest.RandomRefusals(r, from, now, 60)...))
		}
		job := task.Event{Time: from, Action: task.JobSubmitted, Outcome: task.OutcomeOK, Tenant: "acme", ActorType: task.ActorUser, ActorID: "acme", JobID: fmt.Sprint("job-", writer+1),
			Detail: fmt.Appendf(nil, `{"sha256":"%064x","tasks":%d}`, writer, 500*writer)}
		rig.Record(events.Events(t, job))
	}
	audittest.Execute(t, pool, `UPDATE callbacks SET state = (ARRAY['DUE', 'DELIVERED', 'GIVEN_UP'])[1 + (hashtext(callback_id) & 1) + ((hashtext(callback_id) >> 1) & 1)],
		attempts = (hashtext(callback_id) >> 3) & 3`)
}

// seen is one session's view of the database, at one moment.
type seen struct {
	t         *testing.T
	tx        pgx.Tx
	now       time.Time
	compacted bool
	log       []logRow
	results   []resultRow
	tasks     []taskRow
}

type logRow struct {
	Time                                  time.Time
	Tenant, Action, Outcome, Class        string
	ActorType, Actor, Source, Agent, Task string
	Device, Model, Detail                 string
	MS                                    float64
	InputBytes                            int64
	detail                                struct {
		Reason     string
		Tasks      int64
		Bytes      int64
		Unreadable *int64 `json:"unreadable_bytes"`
		Index      int    `json:"request_index"`
	}
}

// us is how long it took, in whole microseconds.
func (r *logRow) us() int64 { return int64(math.Round(r.MS*1e6)) / 1000 }

type resultRow struct {
	Tenant, State, Model string
	Attempt, In, Out     int64
	Submitted, Assigned  *time.Time
	Started              *time.Time
	Finished             time.Time
}

type taskRow struct {
	Tenant, Task, State, Job, Class string
	Updated                         time.Time
	Finished, Deadline              *time.Time
	In, Out                         int64
}

func rowsOf[T any](t *testing.T, tx pgx.Tx, sql string) []T {
	t.Helper()
	rows, err := tx.Query(t.Context(), sql)
	require.NoError(t, err, sql)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	require.NoError(t, err, sql)
	return all
}

// look compares every view with the rows in a session of a time zone.
func look(t *testing.T, pool *pgxpool.Pool, zone string, compacted bool) {
	t.Helper()
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}) // now() and the rows stand still
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), fmt.Sprintf("SET LOCAL timezone = '%s'", zone))
	require.NoError(t, err)
	s := &seen{t: t, tx: tx, compacted: compacted}
	require.NoError(t, tx.QueryRow(t.Context(), "SELECT now()").Scan(&s.now))
	s.log = rowsOf[logRow](t, tx, `SELECT time, tenant, action, outcome, coalesce(error_class, ''), actor_type, actor_id, coalesce(source_addr, ''), coalesce(user_agent, ''),
		coalesce(task_id, ''), coalesce(device_id, ''), coalesce(model, ''), coalesce(detail::text, ''), coalesce(duration_ms, 0), coalesce(input_bytes, 0) FROM audit_log ORDER BY time`)
	for i := range s.log {
		if r := &s.log[i]; r.Detail != "" {
			require.NoError(t, json.Unmarshal([]byte(r.Detail), &r.detail), r.Detail)
		}
	}
	s.results = rowsOf[resultRow](t, tx, `SELECT tenant, state, coalesce(model, ''), attempt, input_tokens, output_tokens, submitted_at, assigned_at, started_at, finished_at FROM results`)
	s.tasks = rowsOf[taskRow](t, tx, `SELECT tenant, task_id, state, coalesce(job_id, ''), coalesce(error_class, ''), updated_at, finished_at, deadline,
		coalesce(input_tokens, 0), coalesce(output_tokens, 0) FROM tasks`)
	for name, compare := range map[string]func(*seen){
		"usage_by_day": (*seen).usage, "retries": (*seen).retries, "batch_sizes": (*seen).batches, "submissions": (*seen).submissions,
		"device_availability": (*seen).availability, "stage_latency": (*seen).latency, "task_ages": (*seen).ages, "stuck_tasks": (*seen).stuck,
		"job_progress": (*seen).jobs, "selections": (*seen).selections, "tasks": (*seen).states,
	} {
		compare(s)
		require.False(t, t.Failed(), "%s, in %s, compacted: %t", name, zone, compacted)
	}
}

func dayOf(at time.Time) string { return at.UTC().Format(time.DateOnly) }

// groups are sums by key.
type groups[V any] map[string]*V

func (g groups[V]) of(keys ...any) *V {
	parts := make([]string, len(keys))
	for i, k := range keys {
		parts[i] = fmt.Sprint(k)
	}
	key := strings.Join(parts, "|")
	if g[key] == nil {
		g[key] = new(V)
	}
	return g[key]
}

// is compares the sums with rows of text: their key and their values, separated by spaces.
func is[V any](s *seen, want groups[V], sql string) {
	s.t.Helper()
	var lines []string
	for k, v := range want {
		lines = append(lines, fmt.Sprintf("%s %v", k, *v))
	}
	slices.Sort(lines)
	rows, err := s.tx.Query(s.t.Context(), sql)
	require.NoError(s.t, err, sql)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(s.t, err, sql)
	slices.Sort(got)
	require.NotEmpty(s.t, got, sql)
	require.Equal(s.t, strings.Join(lines, "\n"), strings.Join(got, "\n"), sql)
}

func (s *seen) usage() {
	want := groups[[8]int64]{}
	for _, r := range s.results {
		v := want.of(dayOf(r.Finished), r.Tenant, r.Model)
		v[0]++
		v[1+slices.Index([]string{"SUCCESS", "FAILED", "CANCELLED", "EXPIRED"}, r.State)]++
		v[5], v[6], v[7] = v[5]+r.Attempt, v[6]+r.In, v[7]+r.Out
	}
	is(s, want, `SELECT format('%s|%s|%s [%s %s %s %s %s %s %s %s]', day, tenant, model, tasks, succeeded, failed, cancelled, expired, attempts, input_tokens, output_tokens) FROM usage_by_day`)
}

func (s *seen) retries() {
	type sums struct{ failed, requeued, degraded, lostMS int64 }
	want := groups[sums]{}
	for _, r := range s.log {
		cause := r.Class
		if cause == "" && r.Action == "task.requeued" {
			cause = r.detail.Reason
		}
		key := []any{dayOf(r.Time), r.Device, r.Model, cause}
		switch r.Action {
		case "attempt.failed":
			v := want.of(key...)
			v.failed++
			if r.detail.Index == 0 {
				v.lostMS += r.us()
			}
		case "task.requeued":
			want.of(key...).requeued++
		case "task.degraded":
			want.of(key...).degraded++
		}
	}
	for _, v := range want {
		v.lostMS = int64(math.Round(float64(v.lostMS) / 1000))
	}
	is(s, want, `SELECT format('%s|%s|%s|%s {%s %s %s %s}', day, device_id, model, cause, failed_attempts, requeued, degraded, (lost_seconds * 1000)::bigint) FROM retries`)
}

func (s *seen) batches() {
	want := groups[[3]int64]{}
	for _, r := range s.log {
		if r.Action == "batch.closed" && r.detail.Unreadable == nil {
			v := want.of(dayOf(r.Time), r.Model, r.detail.Reason, r.detail.Tasks)
			v[0]++
			v[1] += r.detail.Bytes
			v[2] = r.detail.Tasks
		}
	}
	for _, v := range want {
		n, bytes, size := float64(v[0]), float64(v[1]), float64(v[2])
		v[1], v[2] = int64(math.Round(bytes/n)), -1
		if size > 0 {
			v[2] = int64(math.Round(n / size))
		}
	}
	is(s, want, `SELECT format('%s|%s|%s|%s [%s %s %s]', day, model, reason, size, tasks, bytes_per_batch, coalesce(batches, -1)) FROM batch_sizes`)
}

func (s *seen) submissions() {
	want := groups[[4]int64]{}
	for _, r := range s.log {
		if r.Action != "task.accepted" {
			continue
		}
		v := want.of(dayOf(r.Time), r.Tenant, r.Actor, sourceOf(r.Source), r.Agent)
		at := r.Time.UnixMicro()
		if v[0] == 0 {
			v[2] = at
		}
		v[0], v[1], v[2], v[3] = v[0]+1, v[1]+r.InputBytes, min(v[2], at), max(v[3], at)
	}
	is(s, want, `SELECT format('%s|%s|%s|%s|%s [%s %s %s %s]', day, tenant, actor_id, source, user_agent, tasks, input_bytes,
		(extract(epoch FROM first_at) * 1000000)::bigint, (extract(epoch FROM last_at) * 1000000)::bigint) FROM submissions`)
}

func sourceOf(addr string) string {
	if strings.HasPrefix(addr, "kafka:") {
		topic, _, _ := strings.Cut(addr, "/")
		return topic
	}
	if i := strings.LastIndex(addr, ":"); i >= 0 {
		return addr[:i]
	}
	return addr
}

// availability replays the history of each device.
func (s *seen) availability() {
	type sums struct {
		up, failing, drained, absent, succeeded, failed, requests, busy int64
	}
	want := groups[sums]{}
	type status struct {
		since                    time.Time
		absent, failing, drained bool
	}
	devices := map[string]*status{}
	spend := func(device string, d *status, until time.Time) {
		for at := d.since; at.Before(until); {
			end := at.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
			if end.After(until) {
				end = until
			}
			v, us := want.of(dayOf(at), device), end.Sub(at).Microseconds()
			switch {
			case d.absent:
				v.absent += us
			case d.failing:
				v.failing += us
			case d.drained:
				v.drained += us
			default:
				v.up += us
			}
			at = end
		}
		d.since = until
	}
	for _, r := range s.log {
		if r.Action == "attempt.succeeded" || r.Action == "attempt.failed" {
			v := want.of(dayOf(r.Time), r.Device)
			if r.Action == "attempt.failed" {
				v.failed++
			} else {
				v.succeeded++
			}
			if r.detail.Index == 0 { // a request is counted with its first task
				v.requests++
				v.busy += r.us()
			}
		}
		if r.Task != "" || r.Device == "" || r.Outcome != "ok" {
			continue
		}
		d := devices[r.Device]
		if d == nil {
			d = &status{since: r.Time}
			devices[r.Device] = d
		}
		spend(r.Device, d, r.Time)
		switch r.Action {
		case "device.joined", "device.silent", "device.left":
			d.absent = r.Action != "device.joined"
		case "breaker.opened", "breaker.half_opened", "breaker.closed":
			d.failing = r.Action != "breaker.closed"
		case "device.drained", "device.undrained":
			d.drained = r.Action == "device.drained"
		}
	}
	for device, d := range devices {
		spend(device, d, s.now)
	}
	for _, v := range want {
		for _, us := range []*int64{&v.up, &v.failing, &v.drained, &v.absent} {
			*us = int64(math.Round(float64(*us) / 1e6))
		}
		v.busy = int64(math.Round(float64(v.busy) / 1e5))
	}
	is(s, want, `SELECT format('%s|%s {%s %s %s %s %s %s %s %s}', day, device_id, coalesce(up_seconds, 0), coalesce(failing_seconds, 0), coalesce(drained_seconds, 0), coalesce(absent_seconds, 0),
		attempts_succeeded, attempts_failed, requests, (coalesce(busy_seconds, 0) * 10)::bigint) FROM device_availability`)
}

// latency compares counts and means exactly, and percentiles as far as the histogram goes.
func (s *seen) latency() {
	stages := map[string]string{"task.assigned": "queue", "batch.closed": "batch", "attempt.succeeded": "attempt", "attempt.failed": "failed_attempt", "callback.delivered": "callback"}
	days, hours := map[string][]int64{}, map[string][]int64{}
	add := func(at time.Time, stage, model string, us int64) {
		day := fmt.Sprintf("%s|%s|%s", dayOf(at), stage, model)
		days[day] = append(days[day], us)
		if at.After(s.now.Add(-24 * time.Hour)) {
			hour := fmt.Sprintf("%s %d|%s|%s", dayOf(at), at.UTC().Hour(), stage, model)
			hours[hour] = append(hours[hour], us)
		}
	}
	for _, r := range s.log {
		if stage := stages[r.Action]; stage != "" {
			add(r.Time, stage, r.Model, r.us())
		}
	}
	for _, r := range s.results {
		if r.Assigned != nil && r.Started != nil && !r.Started.Before(*r.Assigned) {
			add(r.Finished, "dispatch", r.Model, r.Started.Sub(*r.Assigned).Microseconds())
		}
		if r.State == "SUCCESS" && r.Submitted != nil && !r.Finished.Before(*r.Submitted) {
			add(r.Finished, "total", r.Model, r.Finished.Sub(*r.Submitted).Microseconds())
		}
	}
	s.percentiles(days, `SELECT format('%s|%s|%s', day, stage, model), n, mean_ms::float8, p50_ms::float8, p90_ms::float8, p99_ms::float8, max_ms::float8 FROM stage_latency`)
	// Full hours only: the first one is cut in two by the moment a day ago.
	s.percentiles(hours, fmt.Sprintf(`SELECT format('%%s %%s|%%s|%%s', day, hour, stage, model), n, mean_ms::float8, p50_ms::float8, p90_ms::float8, p99_ms::float8, max_ms::float8
		FROM stage_latency_by_hour WHERE (day + hour * interval '1 hour') AT TIME ZONE 'UTC' > timestamptz '%s'`, s.now.Add(-24*time.Hour).Format(time.RFC3339Nano)))
}

func (s *seen) percentiles(want map[string][]int64, sql string) {
	s.t.Helper()
	type row struct {
		Key                      string
		N                        int64
		Mean, P50, P90, P99, Max float64
	}
	got := rowsOf[row](s.t, s.tx, sql)
	require.NotEmpty(s.t, got, sql)
	if !strings.Contains(sql, "by_hour") {
		require.Len(s.t, got, len(want), sql)
	}
	for _, g := range got {
		all := want[g.Key]
		slices.Sort(all)
		require.Len(s.t, all, int(g.N), g.Key)
		sum := int64(0)
		for _, us := range all {
			sum += us
		}
		require.InDelta(s.t, float64(sum)/float64(len(all))/1000, g.Mean, 0.001, g.Key)
		for at, ms := range map[float64]float64{0.5: g.P50, 0.9: g.P90, 0.99: g.P99, 1: g.Max} {
			exact := float64(all[max(0, int(math.Ceil(at*float64(len(all))))-1)]) / 1000
			require.InDelta(s.t, exact, ms, exact*0.0626+0.001, "%s at %g", g.Key, at)
		}
	}
}

func (s *seen) ages() {
	bounds := []time.Duration{time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour, 7 * 24 * time.Hour}
	want := groups[[1]int64]{}
	count := func(tenant, state string, at time.Time) {
		place, age := 0, s.now.Sub(at)
		for place < len(bounds) && age >= bounds[place] {
			place++
		}
		want.of(tenant, state, place)[0]++
	}
	for _, r := range s.tasks {
		if r.Finished == nil {
			count(r.Tenant, r.State, r.Updated)
		}
	}
	for _, r := range s.results {
		end := r.Finished.UTC().Truncate(time.Hour).Add(time.Hour)
		if s.compacted && r.Finished.UTC().Truncate(24*time.Hour).Before(s.now.Add(-48*time.Hour).UTC().Truncate(24*time.Hour)) {
			end = r.Finished.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
		}
		if end.After(s.now) {
			end = s.now
		}
		count(r.Tenant, r.State, end)
	}
	is(s, want, `SELECT format('%s|%s|%s [%s]', tenant, state, CASE extract(epoch FROM age_from) WHEN 0 THEN 0 WHEN 60 THEN 1 WHEN 600 THEN 2 WHEN 3600 THEN 3 WHEN 86400 THEN 4 ELSE 5 END,
		sum(tasks)) FROM task_ages GROUP BY tenant, state, age_from`)
}

func (s *seen) stuck() {
	want := groups[[2]int64]{}
	for _, r := range s.tasks {
		overdue := r.Deadline != nil && r.Deadline.Before(s.now)
		if r.Finished == nil && (overdue || r.Updated.Before(s.now.Add(-5*time.Minute))) {
			v := want.of(r.Tenant, r.Task)
			v[0] = s.now.Sub(r.Updated).Microseconds()
			if overdue {
				v[1] = 1
			}
		}
	}
	is(s, want, `SELECT format('%s|%s [%s %s]', tenant, task_id, (extract(epoch FROM in_state_for) * 1000000)::bigint, overdue::int) FROM stuck_tasks`)
}

func (s *seen) jobs() {
	type sums struct{ known, done, pending, assigned, running, succeeded, failed, cancelled, expired, in, out, errors int64 }
	want := groups[sums]{}
	for _, r := range s.tasks {
		if r.Job == "" {
			continue
		}
		v := want.of(r.Tenant, r.Job)
		v.known++
		v.in, v.out = v.in+r.In, v.out+r.Out
		for state, n := range map[string]*int64{"PENDING": &v.pending, "ASSIGNED": &v.assigned, "RUNNING": &v.running, "SUCCESS": &v.succeeded, "FAILED": &v.failed, "CANCELLED": &v.cancelled, "EXPIRED": &v.expired} {
			if r.State == state {
				*n++
			}
		}
		if task.State(r.State).Terminal() {
			v.done++
			if r.State != "SUCCESS" {
				v.errors++
			}
		}
	}
	is(s, want, `SELECT format('%s|%s {%s %s %s %s %s %s %s %s %s %s %s %s}', tenant, job_id, known, done, pending, assigned, running, succeeded, failed, cancelled, expired, input_tokens, output_tokens,
		(SELECT coalesce(sum((e->>'tasks')::bigint), 0) FROM json_array_elements(coalesce(errors, '[]')) e)) FROM job_progress`)
}

// selections are views that show some of the rows as they are.
func (s *seen) selections() {
	for view, want := range map[string]func(r *logRow) bool{
		"user_actions":   func(r *logRow) bool { return r.ActorType == "user" && r.Action != "task.accepted" },
		"device_history": func(r *logRow) bool { return r.Task == "" && r.Device != "" },
		"refusals":       func(r *logRow) bool { return r.Outcome == "refused" },
		"task_timeline":  func(r *logRow) bool { return r.Task != "" },
	} {
		all := groups[[1]int64]{}
		for i := range s.log {
			if r := &s.log[i]; want(r) {
				all.of(r.Time.UnixMicro(), r.Action, r.Actor, r.Detail)[0]++
			}
		}
		is(s, all, `SELECT format('%s|%s|%s|%s [%s]', (extract(epoch FROM time) * 1000000)::bigint, action, actor_id, detail::text, count(*)) FROM `+view+` GROUP BY time, action, actor_id, detail::text`)
	}
	sources := groups[[1]int64]{}
	for _, r := range s.log {
		if r.Outcome == "refused" {
			sources.of(sourceOf(r.Source))[0]++
		}
	}
	is(s, sources, `SELECT format('%s [%s]', source, count(*)) FROM refusals GROUP BY source`)
	type hook struct {
		ID, State string
		Attempts  int
	}
	failures := groups[[1]int]{}
	for _, h := range rowsOf[hook](s.t, s.tx, "SELECT callback_id, state, attempts FROM callbacks") {
		if h.State == "GIVEN_UP" || h.State == "DUE" && h.Attempts > 0 {
			failures.of(h.ID, h.State)[0] = h.Attempts
		}
	}
	is(s, failures, `SELECT format('%s|%s [%s]', callback_id, state, attempts) FROM callback_failures`)
}

// states compares the state of each task with its result, or else with its last event.
func (s *seen) states() {
	states := map[string]string{"task.accepted": "PENDING", "task.queued": "PENDING", "task.requeued": "PENDING", "task.assigned": "ASSIGNED", "attempt.started": "RUNNING"}
	last := map[string]string{}
	for _, r := range s.log {
		if state := states[r.Action]; state != "" {
			last[r.Tenant+"|"+r.Task] = state
		}
	}
	ended := 0
	for _, r := range s.tasks {
		if r.Finished != nil {
			ended++
			continue
		}
		require.Equal(s.t, last[r.Tenant+"|"+r.Task], r.State, r.Task)
	}
	require.Equal(s.t, len(s.results), ended)
	require.Len(s.t, last, len(s.tasks))
	require.Positive(s.t, cmp.Compare(len(s.tasks), ended), "some wait")
}
