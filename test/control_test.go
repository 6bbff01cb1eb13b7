package test

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// operatorRow is an audit row about an operator's action.
type operatorRow struct {
	Action     string
	ActorID    string
	SourceAddr *string
	UserAgent  *string
	DeviceID   *string
	TaskID     *string
	Detail     *string
}

// operators waits for n rows of one action that succeeded and returns them in order.
func operators(t *testing.T, in *harness.Installation, a task.Action, n int) []operatorRow {
	t.Helper()
	harness.Eventually(t, harness.Patience, string(a)+" is recorded", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = $1 AND outcome = 'ok'", a) >= n
	})
	rows := harness.Rows[operatorRow](t, in, `SELECT action, actor_id, source_addr, user_agent, device_id, task_id, detail::text AS detail
		FROM audit_log WHERE action = $1 AND outcome = 'ok' ORDER BY time`, a)
	require.Len(t, rows, n)
	return rows
}

func command(t *testing.T, in *harness.Installation, p *harness.Process, args ...string) string {
	t.Helper()
	ran := harness.Run(t, in.Dir, []string{"BATCHYARD_SERVER=" + p.URL()}, "", args...)
	require.Zerof(t, ran.Code, "%v: %s", args, ran.Stderr)
	return ran.Stdout
}

func TestDrainAndUndrain(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 2, ServiceTime: 20 * time.Millisecond}, fleet.Spec{ID: "b", Slots: 2, ServiceTime: 20 * time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	round := func(prefix string) []string {
		tasks, ids := harness.Chats(prefix, 40)
		a.Submit(t, tasks...)
		in.Await(t, ids, harness.Patience)
		return ids
	}
	ids := round("before")
	require.Positive(t, f.Device("a").Stats().Requests)
	require.Positive(t, f.Device("b").Stats().Requests)

	require.Equal(t, "device a: drained\n", command(t, in, p, "devices", "drain", "a"))
	require.Regexp(t, `(?m)^a +draining .* an operator drained it$`, command(t, in, p, "devices", "list"))
	var list api.DeviceList
	a.Get(t, "/v1/devices", &list)
	require.True(t, list.Devices[0].Drained && list.Devices[0].Draining)
	// Routers learn of it from a message; tasks assigned before that still go there.
	settled := func() (n int64) {
		harness.Eventually(t, harness.Patience, "the drained device gets no new tasks", func() bool {
			n = f.Device("a").Stats().Requests
			ids = append(ids, round("settling"+task.NewID()[:13])...)
			return f.Device("a").Stats().Requests == n
		})
		return n
	}
	n := settled()
	ids = append(ids, round("drained")...)
	require.Equal(t, n, f.Device("a").Stats().Requests, "a drained device gets no new tasks")

	require.Equal(t, "device a: undrained\n", command(t, in, p, "devices", "undrain", "a"))
	harness.Eventually(t, harness.Patience, "the device gets tasks again", func() bool {
		ids = append(ids, round("after"+task.NewID()[:13])...)
		return f.Device("a").Stats().Requests > n
	})
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodPost, "/v1/devices/unknown/drain", nil).Status)
	row := operators(t, in, task.DeviceDrained, 1)[0]
	require.Equal(t, "default", row.ActorID)
	require.Equal(t, "a", value(t, "device", row.DeviceID))
	require.True(t, strings.HasPrefix(value(t, "source", row.SourceAddr), "127.0.0.1:"))
	require.Contains(t, value(t, "user agent", row.UserAgent), "batchyard-cli/")
	operators(t, in, task.DeviceUndrained, 1)
	in.CheckPromises(t, ids, nil)
}

// When a device with a queue is drained, its running tasks finish, the queued ones go
// elsewhere, and neither counts as a failure.
func TestQueuedTasksLeaveDrainedDevice(t *testing.T) {
	t.Parallel()
	const n = 40
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"router.policy": "round_robin"}) // binds early
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 1, ServiceTime: 2 * time.Second}, fleet.Spec{ID: "b", Slots: 4, ServiceTime: 5 * time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	tasks, ids := harness.Chats("t", n)
	a.Submit(t, tasks...)
	harness.Eventually(t, harness.Patience, "the device has a queue", func() bool {
		return harness.SQL[int](t, in, "SELECT count(*) FROM audit_log WHERE action = 'task.assigned' AND device_id = 'a'") >= n/4
	})
	command(t, in, p, "devices", "drain", "a")
	in.Await(t, ids, harness.Patience)
	require.LessOrEqual(t, f.Device("a").Stats().Requests, int64(4), "out of about %d that were queued there", n/2)
	require.Zero(t, f.Device("a").Stats().Cancelled)
	require.Zero(t, harness.SQL[int](t, in, "SELECT count(*) FROM results WHERE state <> $1", task.Success))
	in.CheckPromises(t, ids, nil)
}

// TestPolicyChangesWhileTasksRun changes the policy under load. All routers must
// follow, and no task may be affected.
func TestPolicyChangesWhileTasksRun(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, unequalFleet()...)
	p := in.Process(t, "serve")
	in.Process(t, "serve", "router")
	a := p.API()
	var ids []string
	by := func(policy string) {
		harness.Eventually(t, harness.Patience, "all routers use "+policy, func() bool {
			var since time.Time
			require.NoError(t, in.Pool(t).QueryRow(t.Context(), "SELECT now()").Scan(&since))
			tasks, some := harness.Chats("t"+task.NewID()[24:], 60)
			a.Submit(t, tasks...)
			in.Await(t, some, harness.Patience)
			ids = append(ids, some...)
			in.AwaitRecorded(t)
			type by struct {
				Policy string
				Actor  string
			}
			rows := harness.Rows[by](t, in, `SELECT DISTINCT detail->>'policy' AS policy, actor_id AS actor FROM audit_log
				WHERE action = 'task.assigned' AND task_id = ANY($1)`, some)
			for _, r := range rows {
				if r.Policy != policy {
					return false
				}
			}
			return len(rows) == 2
		})
	}
	by("expected_finish")
	answer := a.Do(t, http.MethodPut, "/v1/router/policy", `{"policy":"power_of_two"}`)
	require.Equalf(t, http.StatusOK, answer.Status, "%s", answer.Body)
	by("power_of_two")
	require.Regexp(t, `policy +round_robin\nbinding +late\n`, command(t, in, p, "policy", "set", "round_robin", "--binding", "late"))
	by("round_robin")
	wrong := a.Do(t, http.MethodPut, "/v1/router/policy", `{"policy":"best"}`)
	require.Equal(t, http.StatusUnprocessableEntity, wrong.Status)
	require.Equal(t, http.StatusOK, a.Do(t, http.MethodDelete, "/v1/router/policy", nil).Status)
	by("expected_finish")

	rows := operators(t, in, task.PolicyChanged, 3)
	require.Equal(t, "end-to-end/1", value(t, "user agent", rows[0].UserAgent))
	require.True(t, strings.HasPrefix(value(t, "source", rows[0].SourceAddr), "127.0.0.1:"))
	var change struct {
		Old, New struct{ Policy, Source string }
	}
	for i, want := range [][2]string{{"expected_finish", "power_of_two"}, {"power_of_two", "round_robin"}, {"round_robin", "expected_finish"}} {
		require.NoError(t, json.Unmarshal([]byte(value(t, "detail", rows[i].Detail)), &change))
		require.Equal(t, want, [2]string{change.Old.Policy, change.New.Policy})
	}
	require.Equal(t, "file", change.New.Source)
	in.CheckPromises(t, ids, nil)
}

// TestConfigFileIsReloaded changes the configuration file while the process runs.
func TestConfigFileIsReloaded(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 4, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	file := func(with map[string]any) {
		in.WriteConfig(t, in.ConfigPath+".new", with)
		require.NoError(t, os.Rename(in.ConfigPath+".new", in.ConfigPath))
	}
	policy := func() (st api.PolicyStatus) {
		a.Get(t, "/v1/router/policy", &st)
		return st
	}
	chosenBy := func(want string) {
		harness.Eventually(t, harness.Patience, "the router uses "+want, func() bool {
			id := "t-" + task.NewID()
			a.Submit(t, harness.Chat(id))
			waitFor(t, a, id)
			in.AwaitRecorded(t)
			return harness.SQL[string](t, in, "SELECT detail->>'policy' FROM audit_log WHERE action = 'task.assigned' AND task_id = $1", id) == want
		})
	}
	file(map[string]any{"router.policy": "round_robin", "log.level": "debug"})
	harness.Eventually(t, harness.Patience, "the file is reloaded", func() bool { return policy().Policy == "round_robin" })
	require.Equal(t, "file", policy().Source)
	chosenBy("round_robin")
	require.Contains(t, p.Log(), "log.level: info → debug")
	row := operators(t, in, task.ConfigReloaded, 1)[0]
	require.True(t, strings.HasPrefix(row.ActorID, "serve@"))
	var change struct{ Old, New struct{ Policy string } }
	require.NoError(t, json.Unmarshal([]byte(value(t, "detail", row.Detail)), &change))
	require.Equal(t, "expected_finish", change.Old.Policy)
	require.Equal(t, "round_robin", change.New.Policy)

	// An invalid file is logged and changes nothing.
	file(map[string]any{"router.policy": "best", "log.level": "warn"})
	harness.Eventually(t, harness.Patience, "the log reports the problem", func() bool { return strings.Contains(p.Log(), `router.policy: \"best\" is not one of`) })
	require.Equal(t, "round_robin", policy().Policy)

	// A restart is needed: said in the log.
	file(map[string]any{"router.policy": "round_robin", "log.level": "debug", "router.max_round_tasks": 17})
	harness.Eventually(t, harness.Patience, "it is told what needs a restart", func() bool { return strings.Contains(p.Log(), "settings=router.max_round_tasks") })

	// An operator's policy overrides the file until it is reset.
	command(t, in, p, "policy", "set", "fifo")
	chosenBy("fifo")
	file(map[string]any{"router.policy": "least_connections", "log.level": "debug"})
	harness.Eventually(t, harness.Patience, "the file is reloaded", func() bool { return policy().File.Policy == "least_connections" })
	require.Equal(t, "fifo", policy().Policy)
	chosenBy("fifo")
	command(t, in, p, "policy", "reset")
	chosenBy("least_connections")
}

// assignedOrder returns the tasks in the order of their first assignment.
func assignedOrder(t *testing.T, in *harness.Installation) (ids []string) {
	t.Helper()
	in.AwaitRecorded(t)
	type row struct{ TaskID string }
	for _, r := range harness.Rows[row](t, in, `SELECT task_id FROM audit_log WHERE action = 'task.assigned' GROUP BY 1 ORDER BY min(time), 1`) {
		ids = append(ids, r.TaskID)
	}
	return ids
}

// TestPriorityChangesWhileTasksWait changes the priorities of tasks that a router
// holds and of tasks that are still in Kafka, and then lets them run.
func TestPriorityChangesWhileTasksWait(t *testing.T) {
	t.Parallel()
	const n = 30
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 1, ServiceTime: 5 * time.Millisecond})
	p := in.Process(t, "serve", "api", "audit", "callbacks")
	a := p.API()
	command(t, in, p, "devices", "drain", "a")
	change := func(id, body string) {
		answer := a.Do(t, http.MethodPatch, "/v1/tasks/"+id, body)
		require.Equalf(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
	}
	tasks, ids := harness.Chats("t", n)
	a.Submit(t, tasks...)
	change(ids[n-1], `{"priority":"high","level":9}`) // no router has read it yet
	change(ids[0], `{"priority":"low"}`)
	in.Process(t, "serve", "router", "batcher", "workers")
	queued := func(more int) {
		harness.Eventually(t, harness.Patience, "a router holds the tasks", func() bool {
			return harness.SQL[int](t, in, "SELECT count(DISTINCT task_id) FROM audit_log WHERE action = 'task.queued'") == n+more
		})
	}
	queued(0)
	require.Contains(t, command(t, in, p, "tasks", "set-priority", ids[n-2], "high", "--level", "3"), "normal level 0 → high level 3")
	change(ids[1], `{"level":9}`)
	require.Equal(t, http.StatusUnprocessableEntity, a.Do(t, http.MethodPatch, "/v1/tasks/"+ids[1], `{"level":10}`).Status)
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodPatch, "/v1/tasks/unknown", `{"level":1}`).Status)
	harness.Eventually(t, harness.Patience, "the new priority is shown", func() bool { return a.Status(t, ids[n-2]).Priority == task.High })
	// The router sees changes in order, so once it has seen this task it has seen all.
	late := harness.Chat("late")
	late.Priority = task.Low
	a.Submit(t, late)
	queued(1)
	harness.Eventually(t, harness.Patience, "the router has applied the changes", func() bool {
		return strings.Contains(whyOf(t, a, ids[1]).Sentence, "level 9")
	})
	// Low tasks get a share of the time, so when this one runs depends on the others.
	require.Contains(t, whyOf(t, a, ids[0]).Sentence, "priority low and level 0")

	// The two tasks that are now high run first. One of them gets two of the three
	// failures, so it is requeued, to the topic of its new priority.
	f.Device("a").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 503, Times: 3})
	command(t, in, p, "devices", "undrain", "a")
	all := append(append([]string{}, ids...), "late")
	in.Await(t, all, 2*harness.Patience)
	order := assignedOrder(t, in)
	require.ElementsMatch(t, []string{ids[n-1], ids[n-2]}, order[:2], "high before the others; one round may take both")
	require.Less(t, index(order, ids[1]), index(order, ids[2]), "a higher level goes first within a priority")
	again := in.All(t, stream.TasksHigh)
	require.NotEmpty(t, again, "a requeued task keeps its new priority")
	for _, r := range again {
		require.Contains(t, order[:2], string(r.Key))
	}

	done := a.Do(t, http.MethodPatch, "/v1/tasks/"+ids[3], `{"priority":"high"}`)
	require.Equal(t, http.StatusConflict, done.Status)
	rows := operators(t, in, task.TaskReprioritized, 4)
	require.Equal(t, ids[n-1], value(t, "task", rows[0].TaskID))
	require.Equal(t, "default", rows[0].ActorID)
	require.True(t, strings.HasPrefix(value(t, "source", rows[0].SourceAddr), "127.0.0.1:"))
	require.JSONEq(t, `{"from":{"priority":"normal","level":0},"to":{"priority":"high","level":9}}`, value(t, "detail", rows[0].Detail))
	require.Equal(t, task.High, a.Status(t, ids[n-1]).Priority)
	in.CheckPromises(t, all, nil)
}

func index(all []string, one string) int {
	for i, s := range all {
		if s == one {
			return i
		}
	}
	return -1
}

func whyOf(t *testing.T, a *harness.API, id string) (w api.Why) {
	t.Helper()
	a.Get(t, "/v1/tasks/"+id+"/why", &w)
	return w
}

// TestWhyInEachSituation checks the explanations of why tasks wait and of where they
// ran.
func TestWhyInEachSituation(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	f := in.Fleet(t, fleet.Spec{ID: "quick", Models: []string{"m"}, Tags: []string{"eu"}, Slots: 2, ServiceTime: time.Millisecond},
		fleet.Spec{ID: "endless", Models: []string{"endless"}, Slots: 1, ServiceTime: time.Hour},
		fleet.Spec{ID: "drained", Models: []string{"drained"}, Slots: 1},
		fleet.Spec{ID: "bad", Models: []string{"bad"}, Slots: 1})
	f.Device("bad").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 400})
	p := in.Process(t, "serve")
	a := p.API()
	command(t, in, p, "devices", "drain", "drained")
	make := func(id, model string) *task.Task {
		one := harness.Chat(id)
		one.Model = model
		return one
	}
	done, tags, later, deadline := make("done", "m"), make("tags", "m"), make("later", "m"), make("deadline", "unserved-model")
	tags.Needs = []string{"eu", "gpu"}
	later.NotBefore = time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	deadline.Deadline = time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	expired := make("expired", "unserved-model")
	expired.Deadline = time.Now().Add(time.Second)
	tasks := []*task.Task{done, tags, later, deadline, expired, make("model", "unserved-model"), make("failed", "bad")}
	for _, id := range []string{"busy-1", "busy-2", "busy-3", "busy-4"} {
		tasks = append(tasks, make(id, "endless"))
	}
	a.Submit(t, tasks...)
	// Expiring took a second, so by now the router has seen that the device is drained.
	in.Await(t, []string{"expired"}, harness.Patience)
	a.Submit(t, make("drained", "drained"))
	for id, says := range map[string][]string{
		"done":     {"It ran on quick. Attempt 1 went to quick by expected_finish, out of 1 device that could run it, because ", "do not serve its model", "it was answered after"},
		"tags":     {"It waits, with priority normal and level 0", "none of the 4 devices can run it", "3 do not serve its model and 1 lacks tags that it needs"},
		"later":    {"it may not run before " + later.NotBefore.Format(time.RFC3339), "1 of 4 devices could run it"},
		"deadline": {"none of the 4 devices can run it: 4 do not serve its model", "Its deadline is " + deadline.Deadline.Format(time.RFC3339)},
		"model":    {"none of the 4 devices can run it: 4 do not serve its model"},
		"drained":  {"3 do not serve its model and 1 is draining"},
		"expired":  {"ended as EXPIRED before it was assigned to a device: the deadline passed"},
		"failed":   {"It ended as FAILED", "Attempt 1 went to bad", "it failed after", "(declined)"},
	} {
		harness.Eventually(t, harness.Patience, "the explanation of "+id+" is complete", func() bool {
			text := whyOf(t, a, id).Sentence
			for _, s := range says {
				if !strings.Contains(text, s) {
					return false
				}
			}
			return true
		})
	}
	// There is one slot for the busy tasks: one runs, and others wait for it.
	var runs, waits int
	harness.Eventually(t, harness.Patience, "the explanations of the busy tasks are complete", func() bool {
		runs, waits = 0, 0
		for _, id := range []string{"busy-1", "busy-2", "busy-3", "busy-4"} {
			text := whyOf(t, a, id).Sentence
			if strings.Contains(text, "It runs on endless. ") {
				runs++
			}
			if strings.Contains(text, "1 of 4 devices could run it and is busy, with ") {
				waits++
			}
		}
		return runs == 1 && waits >= 1
	})
	w := whyOf(t, a, "tags")
	require.Equal(t, map[string]int{"model": 3, "tags": 1}, w.Waiting.Out)
	require.True(t, w.Waiting.Read)
	require.Equal(t, []string{"eu", "gpu"}, w.Waiting.Needs)
	var figures api.Why
	require.NoError(t, json.Unmarshal([]byte(command(t, in, p, "tasks", "why", "done", "--json")), &figures))
	require.Equal(t, "expected_finish", figures.Attempts[0].Policy)
	require.Equal(t, "quick", figures.Attempts[0].Candidates[0].DeviceID)
	require.Equal(t, 3, figures.Attempts[0].Out["model"])
	require.Contains(t, command(t, in, p, "tasks", "why", "model"), "do not serve its model")
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodGet, "/v1/tasks/unknown/why", nil).Status)
}
