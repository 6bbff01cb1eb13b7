package test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// TestSixProcessesGiveSameResultsAsOne runs the same tasks through one process and
// through six, and compares the results and the audit log.
func TestSixProcessesGiveSameResultsAsOne(t *testing.T) {
	t.Parallel()
	type outcome struct {
		State, Class, Answer string
		Actions              []string
	}
	work := func() (all []*task.Task, ids []string) {
		all, ids = harness.Chats("chat", 150)
		for i := range 60 {
			one := harness.Embedding(fmt.Sprintf("embed-%04d", i))
			all, ids = append(all, one), append(ids, one.ID)
		}
		wrong := harness.Chat("wrong")
		wrong.Input = task.Input(`{"messages":"none"}`)
		late := harness.Chat("late")
		late.Model, late.Deadline = "unserved-model", time.Now().Add(time.Second)
		return append(all, wrong, late), append(ids, wrong.ID, late.ID)
	}
	run := func(t *testing.T, start func(*harness.Installation) *harness.API) map[string]outcome {
		in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(nil))
		specs := unequalFleet()
		for i := range specs {
			specs[i].Models = []string{"m"}
		}
		in.Fleet(t, specs...)
		api := start(in)
		tasks, ids := work()
		require.Equal(t, ids, api.Submit(t, tasks...))
		in.Await(t, ids, 2*harness.Patience)
		in.CheckPromises(t, ids, nil)
		type row struct {
			ID, State, Class, Output string
			Actions                  []string
		}
		out := map[string]outcome{}
		for _, r := range harness.Rows[row](t, in, `SELECT task_id AS id, state, coalesce(error_class, '') AS class, coalesce(output::text, '{}') AS output,
			(SELECT array_agg(DISTINCT action ORDER BY action) FROM audit_log a WHERE a.task_id = r.task_id) AS actions FROM results r`) {
			var answer struct{ Choices, Data, Error json.RawMessage }
			require.NoError(t, json.Unmarshal([]byte(r.Output), &answer))
			out[r.ID] = outcome{r.State, r.Class, fmt.Sprintf("%s%s%s", answer.Choices, answer.Data, answer.Error), r.Actions}
		}
		return out
	}
	one := run(t, func(in *harness.Installation) *harness.API { return in.Process(t, "serve").API() })
	many := run(t, func(in *harness.Installation) *harness.API { return sixProcesses(t, in)["api"].API() })
	require.Len(t, one, 212)
	require.Equal(t, string(task.Success), one["chat-0000"].State)
	require.NotEqual(t, one["chat-0000"].Answer, one["chat-0001"].Answer, "identical answers would make the comparison meaningless")
	require.Equal(t, string(task.Success), one["embed-0000"].State)
	require.Equal(t, string(task.Failed), one["wrong"].State)
	require.Equal(t, string(task.Expired), one["late"].State)
	require.Equal(t, one, many)
}

// openTasks matches metrics with at least ten tasks in open batches.
var openTasks = regexp.MustCompile(`(?m)^batchyard_batcher_open_tasks [1-9]\d`)

// TestStageKilled kills each of six processes in the middle of 2,000 tasks and restarts
// it. No accepted task may be lost, and none may count twice.
func TestStageKilled(t *testing.T) {
	t.Parallel()
	n := harness.Many(2000)
	for _, stage := range stages {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			// With fast commits, a stage that committed too early would lose the tasks
			// that it holds.
			with := map[string]any{"kafka.commit_interval": "20ms"}
			if stage == "batcher" {
				with["batcher.single.max_wait"] = "500ms"
			}
			in := harness.Install(t, harness.Get(t, harness.Shared), loadSettings(with))
			in.Fleet(t, append(unequalFleet(), fleet.Spec{ID: "long", Slots: 16, ServiceTime: 300 * time.Millisecond})...)
			hooks := harness.Hooks(t, harness.Secret, nil)
			at := timeline(t)
			ps := sixProcesses(t, in)
			at("all stages are ready")
			l := submit(t, ps["api"].API(), "t", hooks.URL, n)
			switch stage {
			case "api":
				harness.Eventually(t, harness.Patience, "a quarter of the tasks are accepted", func() bool { return int(l.accepted.Load()) >= n/4 })
				require.Less(t, int(l.accepted.Load()), n)
			case "callbacks":
				harness.Eventually(t, harness.Patience, "some callbacks are delivered", func() bool { return hooks.Count() >= n/8 })
				require.Less(t, hooks.Count(), n)
			case "batcher":
				awaitSomeEnded(t, in, n/8, n)
				harness.Eventually(t, harness.Patience, "batches are open", func() bool {
					return openTasks.Match(ps["batcher"].API().Do(t, "GET", "/metrics", nil).Body)
				})
			default:
				awaitSomeEnded(t, in, n/8, n)
			}
			at("killing")
			ps[stage].Kill(t)
			ps[stage] = ps[stage].Restart(t)
			at("ready again")
			ids := l.wait(t)
			at("all tasks are accepted")
			in.Await(t, ids, 2*harness.Patience)
			at("all tasks have ended")
			in.CheckPromises(t, ids, hooks)
			in.VerifyLog(t)
			at("promises hold")
			allAlive(t, ps)
		})
	}
}
