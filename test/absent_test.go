package test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// gauge reads a metric without labels of a process.
func gauge(t *testing.T, p *harness.Process, name string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^batchyard_` + name + ` (\S+)$`).FindSubmatch(p.API().Do(t, "GET", "/metrics", nil).Body)
	require.NotNil(t, found, name)
	v, err := strconv.ParseFloat(string(found[1]), 64)
	require.NoError(t, err)
	return v
}

// queued waits until routers have read so many tasks.
func queued(t *testing.T, in *harness.Installation, n int) {
	t.Helper()
	harness.Eventually(t, harness.Patience, fmt.Sprintf("%d tasks are read", n), func() bool {
		return harness.SQL[int](t, in, "SELECT count(*)::int FROM audit_log WHERE action = 'task.queued'") >= n
	})
}

func sum(ends []int64) (n int64) {
	for _, e := range ends {
		n += e
	}
	return n
}

// TestWithoutWorkersNothingIsAssigned: while no worker, or no batcher, is there, tasks stay where any
// router finds them. Otherwise their credits would expire and be granted again for as long as it lasts.
func TestWithoutWorkersNothingIsAssigned(t *testing.T) {
	t.Parallel()
	for _, absent := range []string{"workers", "batcher"} {
		t.Run(absent, func(t *testing.T) {
			t.Parallel()
			in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"devices.lease_ttl": "1s", "devices.reader_timeout": "2s"})
			in.Fleet(t, fleet.Spec{ID: "d", Slots: 2, Models: []string{"m"}, ServiceTime: 5 * time.Millisecond})
			rest := []string{"serve", "api", "router", "audit", "batcher"}
			if absent == "batcher" {
				rest[4] = "workers"
			}
			core := in.Process(t, rest...)
			tasks, ids := harness.Chats("before", 100)
			require.Equal(t, ids, core.API().Submit(t, tasks...))
			queued(t, in, len(ids))
			require.Zero(t, sum(in.Ends(t, stream.Assignments)), "nothing may be assigned")
			harness.Eventually(t, harness.Patience, "the explanation says so", func() bool {
				var why struct{ Sentence string }
				core.API().Get(t, "/v1/tasks/before-0000/why", &why)
				return regexp.MustCompile("served by no batcher or no worker").MatchString(why.Sentence)
			})

			p := in.Process(t, "serve", absent)
			in.Await(t, ids, harness.Patience)
			p.Kill(t)
			harness.Eventually(t, harness.Patience, "the device counts as unserved", func() bool { return gauge(t, core, "device_unserved_devices") == 1 })
			before := sum(in.Ends(t, stream.Assignments))
			tasks, more := harness.Chats("after", 50)
			require.Equal(t, more, core.API().Submit(t, tasks...))
			queued(t, in, len(ids)+len(more))
			require.Equal(t, before, sum(in.Ends(t, stream.Assignments)), "nothing may be assigned any more")

			p.Restart(t)
			ids = append(ids, more...)
			in.Await(t, ids, harness.Patience)
			in.CheckPromises(t, ids, nil)
		})
	}
}

// TestEveryStageMayBeAbsent: each stage in turn is away for longer than everything that expires: sessions,
// leases, claims, and what Redis remembers of stages and recent tasks. Tasks are under way when it goes and
// arrive while it is away; all of them end, once.
func TestEveryStageMayBeAbsent(t *testing.T) {
	t.Parallel()
	// Everything that expires does so within the session timeout, the only one that has a lower limit.
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{
		"devices.lease_ttl": "1s", "devices.reader_timeout": "2s", "router.claim_ttl": "2s", "task.recent_ttl": "2s",
	})
	const expiry = 8 * time.Second
	in.Fleet(t, fleet.Spec{ID: "d", Slots: 8, Models: []string{"m"}, ServiceTime: 5 * time.Millisecond})
	hooks := harness.Hooks(t, harness.Secret, nil)
	stages := map[string]*harness.Process{}
	names := []string{"api", "router", "batcher", "workers", "audit", "callbacks"}
	for _, name := range names {
		stages[name] = in.Begin(t, nil, "serve", name)
	}
	for _, p := range stages {
		p.AwaitReady(t)
	}
	rdb := redis.NewClient(&redis.Options{Addr: in.Services.RedisAddr})
	defer func() { _ = rdb.Close() }()
	var ids []string
	submit := func(prefix string, n int) {
		tasks, some := harness.Chats(prefix, n)
		for _, tk := range tasks {
			tk.Callback = &task.Callback{URL: hooks.URL}
		}
		require.Equal(t, some, stages["api"].API().Submit(t, tasks...))
		ids = append(ids, some...)
	}
	for _, name := range names {
		submit(name+"-before", 170)
		marker := in.RedisPrefix + "away-" + name
		stages[name].Kill(t)
		require.NoError(t, rdb.Set(t.Context(), marker, 1, expiry).Err())
		if name != "api" {
			submit(name+"-while", 196)
		}
		harness.Eventually(t, harness.Patience, "everything has expired", func() bool { return rdb.Exists(t.Context(), marker).Val() == 0 })
		stages[name].Restart(t)
	}
	require.Len(t, ids, 2000)
	in.Await(t, ids, harness.Patience)
	in.CheckPromises(t, ids, hooks)
	in.VerifyLog(t)
}

// TestWrongClocksChangeNothing: each process has another clock, wrong by hours, and one of them a clock that
// is set back while it runs.
func TestWrongClocksChangeNothing(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"workers.backoff_min": "100ms"})
	f := in.Fleet(t, fleet.Spec{ID: "d", Slots: 4, Models: []string{"m"}, ServiceTime: 5 * time.Millisecond},
		fleet.Spec{ID: "sick", Slots: 4, Models: []string{"m"}, ServiceTime: 5 * time.Millisecond})
	f.Device("sick").SetFault(fleet.Fault{Kind: fleet.Fail, Times: 20})
	begin := time.Now()
	ps := map[string]*harness.Process{}
	for stage, skew := range map[string]string{
		"api": "90m", "router": "-2h", "batcher": "2h", "workers": "2h,-2h@4s,30m@8s", "audit": "0s", "callbacks": "0s",
	} {
		ps[stage] = in.Begin(t, []string{clock.Variable + "=" + skew}, "serve", stage)
	}
	for _, p := range ps {
		p.AwaitReady(t)
	}
	api := ps["api"].API()
	tasks, ids := harness.Chats("t", 300)
	for i, tk := range tasks {
		switch i % 3 {
		case 0:
			tk.Deadline = time.Now().Add(10 * time.Minute)
		case 1:
			tk.NotBefore = time.Now().Add(time.Second)
		}
	}
	late := harness.Chat("late")
	late.Model, late.Deadline = "unserved-model", time.Now().Add(2*time.Second)
	require.Equal(t, append(ids, "late"), api.Submit(t, append(tasks, late)...))
	in.Await(t, append(ids, "late"), harness.Patience)
	for _, id := range ids {
		require.Equal(t, task.Success, api.Status(t, id).State, id)
	}
	require.Equal(t, task.Expired, api.Status(t, "late").State)
	in.CheckPromises(t, append(ids, "late"), nil)
	end := time.Now()
	type span struct{ From, To time.Time }
	for _, column := range []string{"audit_log:time", "tasks:submitted_at", "tasks:assigned_at", "tasks:started_at", "tasks:finished_at"} {
		table, name, _ := strings.Cut(column, ":")
		got := harness.Rows[span](t, in, fmt.Sprintf(`SELECT min(%[1]s) AS "from", max(%[1]s) AS "to" FROM %[2]s`, name, table))[0]
		require.False(t, got.From.Before(begin.Add(-time.Minute)), "%s: %s", column, got.From)
		require.False(t, got.To.After(end.Add(time.Minute)), "%s: %s", column, got.To)
	}
	require.InDelta(t, (2 * time.Hour).Seconds(), gauge(t, ps["batcher"], "clock_ahead_seconds"), 60)
}
