package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
	"github.com/batchyard/batchyard/test/harness"
)

// asRecord is a task as a client of another kind sends it.
func asRecord(t *testing.T, tk *task.Task) *kgo.Record {
	t.Helper()
	b, err := wire.EncodeTask(tk, wire.ContentJSON)
	require.NoError(t, err)
	return harness.Record(stream.TasksTopic(tk.Priority), tk.ID, b, "content-type", wire.ContentJSON)
}

// What was answered does not run again, and an id stands for what was asked under it first, however old
// that is: the claims in Redis are gone, and the submits and records of before come again.
func TestAnsweredTasksNeverRunAgain(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	s := harness.Get(t, harness.Disruptable)
	in := harness.Install(t, s, map[string]any{"task.recent_ttl": "0s"})
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	tasks, ids := harness.Chats("once", 300)
	a.Submit(t, tasks...)
	in.Await(t, ids, harness.Patience)
	in.AwaitRecorded(t)
	had := requests(f)
	answer := a.Status(t, ids[7]).Output

	s.EmptyRedis(t)
	answered := a.Do(t, http.MethodPost, "/v1/tasks", tasks)
	require.Equalf(t, http.StatusAccepted, answered.Status, "%s", answered.Body)
	var list api.AcceptedList
	answered.Into(t, &list)
	for _, one := range list.Tasks {
		require.Equal(t, task.Success, one.State, one.ID)
	}
	reordered := harness.Chat(ids[0])
	reordered.Input = task.Input(strings.Replace(string(reordered.Input), `"role":"user",`, "", 1))
	reordered.Input = task.Input(strings.Replace(string(reordered.Input), `}]}`, `,"role" : "user"}]}`, 1))
	require.Equal(t, []string{ids[0]}, a.Submit(t, reordered), "the order of members is not part of a request")

	other := harness.Chat(ids[1])
	other.Input = task.Input(`{"messages":[{"role":"user","content":"something else"}]}`)
	refused := a.Do(t, http.MethodPost, "/v1/tasks", other)
	require.Equalf(t, http.StatusConflict, refused.Status, "%s", refused.Body)
	require.Contains(t, string(refused.Body), ids[1])
	require.Contains(t, string(refused.Body), "task_id")

	// The same through Kafka: every record again, and other requests among them.
	s.EmptyRedis(t)
	var records []*kgo.Record
	for i, tk := range tasks {
		if i%10 == 3 {
			tk = harness.Chat(tk.ID)
			tk.Model = "other"
		}
		records = append(records, asRecord(t, tk))
	}
	in.Produce(t, records...)
	fresh := harness.Chat("fresh")
	in.Produce(t, asRecord(t, fresh))
	dead := in.Consume(t, stream.DLQ).Until(t, "other requests under known ids become dead letters", func(all []*kgo.Record) bool { return len(all) >= 30 })
	require.Len(t, dead, 30)
	for _, d := range dead {
		require.Equal(t, "id_reused", harness.Header(d, "dlq-reason"))
		require.Contains(t, harness.Header(d, "dlq-error"), string(d.Key))
	}
	in.Await(t, []string{"fresh"}, harness.Patience)
	harness.Eventually(t, harness.Patience, "every record was read", func() bool {
		return harness.SQL[int](t, in, `SELECT count(*) FROM audit_log WHERE action = 'task.duplicate'`) >= 270
	})
	require.Equal(t, had+1, requests(f), "an answered task ran again")
	require.Equal(t, answer, a.Status(t, ids[7]).Output)
	in.CheckPromises(t, append(ids, "fresh"), nil)
}

// While Postgres is away, tasks are accepted and run; a metric counts those that were not looked up.
func TestUncheckedTasksAreCounted(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	s := harness.Get(t, harness.Disruptable)
	in := harness.Install(t, s, nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	s.StopPostgres(t)
	tasks, ids := harness.Chats("away", 20)
	p.API().SubmitAgain(t, tasks...)
	in.Consume(t, stream.Results).Until(t, "the tasks end", func(all []*kgo.Record) bool { return len(all) >= len(ids) })
	s.StartPostgres(t)
	in.Await(t, ids, 2*harness.Patience)
	metrics, err := p.API().Try(t.Context(), http.MethodGet, "/metrics", nil)
	require.NoError(t, err)
	require.Regexp(t, `batchyard_router_unchecked_tasks_total [1-9]`, string(metrics.Body))
	require.Regexp(t, `batchyard_producer_unchecked_tasks_total [1-9]`, string(metrics.Body))
}

// A finished task runs again only on request, as a new generation whose result is the answer.
func TestRetryIsANewGeneration(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"callbacks.secret_env": harness.SecretEnv, "callbacks.unsigned": false})
	hooks := harness.Hooks(t, harness.Secret, nil)
	f := in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	a := p.API()
	f.Device("a").SetFault(fleet.Fault{Kind: fleet.Fail, Status: 400})
	tasks, ids := harness.Chats("again", 5)
	for _, tk := range tasks {
		tk.Callback = &task.Callback{URL: hooks.URL}
		tk.Deadline = time.Now().Add(time.Hour)
	}
	gone := harness.Chat("gone")
	gone.Model = "unserved"
	a.Submit(t, append(tasks, gone)...)
	require.Equal(t, http.StatusAccepted, a.Do(t, http.MethodPost, "/v1/tasks/gone/cancel", nil).Status)
	for _, id := range append(ids, "gone") {
		waitFor(t, a, id)
	}
	require.Equal(t, task.Failed, a.Status(t, ids[0]).State)
	require.Equal(t, http.StatusNotFound, a.Do(t, http.MethodPost, "/v1/tasks/nothing/retry", nil).Status)

	// The same request again is the same task, which has failed.
	answer := a.Do(t, http.MethodPost, "/v1/tasks", tasks[0])
	require.Contains(t, string(answer.Body), `"FAILED"`)

	f.Device("a").ClearFault()
	in.Device(t, device.Device{ID: "b", URL: f.Device("a").URL(), Models: []string{"unserved"}, Slots: 2})
	in.AwaitRecorded(t) // the positions of the records are in the audit log
	out := harness.Run(t, in.Dir, []string{"BATCHYARD_SERVER=" + p.URL()}, "", append([]string{"tasks", "retry", "--reason", "the device was broken"}, ids...)...)
	require.Zerof(t, out.Code, "%s%s", out.Stdout, out.Stderr)
	require.Contains(t, out.Stdout, "generation 1")
	for _, id := range ids {
		st := waitFor(t, a, id)
		require.Equal(t, task.Success, st.State, id)
		require.Equal(t, 1, st.Generation)
		require.NotEmpty(t, st.Output)
	}
	// The mark of the cancel in Redis does not end the new run.
	require.Equal(t, http.StatusAccepted, a.Do(t, http.MethodPost, "/v1/tasks/gone/retry", map[string]string{"reason": "by mistake"}).Status)
	require.Equal(t, task.Success, waitFor(t, a, "gone").State)

	type row struct{ Generation, Count int }
	require.Equal(t, []row{{0, 6}, {1, 6}}, harness.Rows[row](t, in, `SELECT generation, count(*)::int AS count FROM results GROUP BY 1 ORDER BY 1`))
	require.Equal(t, []string{"by mistake", "the device was broken"}, harness.SQL[[]string](t, in,
		`SELECT array_agg(DISTINCT detail ->> 'reason') FROM audit_log WHERE action = 'task.retried' AND outcome = 'ok'`))
	harness.Eventually(t, harness.Patience, "each generation has its callback", func() bool {
		for _, id := range ids {
			if len(hooks.Deliveries(id)) != 2 {
				return false
			}
		}
		return true
	})
	in.CheckPromises(t, ids, hooks)
	in.VerifyLog(t)
	ledger := in.Run(t, "ledger", "check")
	require.Zerof(t, ledger.Code, "%s%s", ledger.Stdout, ledger.Stderr)
	unfinished := harness.Chat("unfinished")
	unfinished.NotBefore = time.Now().Add(time.Hour) // the devices serve every model
	a.Submit(t, unfinished)
	early := a.Do(t, http.MethodPost, "/v1/tasks/unfinished/retry", nil)
	require.Equalf(t, http.StatusConflict, early.Status, "%s", early.Body)
	for bad, status := range map[string]int{`{"reason":5}`: 422, `{"reason":"` + strings.Repeat("x", 501) + `"}`: 422, `{"why":"x"}`: 422, `nonsense`: 422} {
		require.Equal(t, status, a.Do(t, http.MethodPost, "/v1/tasks/"+ids[0]+"/retry", bad).Status, bad)
	}
}

// Of two requests under one id that arrive at two processes at the same time, one is refused.
func TestTwoRequestsUnderOneID(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	one, two := in.Process(t, "serve", "api").API(), in.Process(t, "serve", "api").API()
	for i := range 30 {
		a, b := harness.Chat(fmt.Sprint("race-", i)), harness.Chat(fmt.Sprint("race-", i))
		b.Model = "other"
		status := make(chan int, 2)
		for at, tk := range map[*harness.API]*task.Task{one: a, two: b} {
			go func() {
				answer, err := at.Try(t.Context(), http.MethodPost, "/v1/tasks", tk)
				if err != nil {
					t.Error(err)
				}
				status <- answer.Status
			}()
		}
		require.ElementsMatch(t, []int{http.StatusAccepted, http.StatusConflict}, []int{<-status, <-status})
	}
}

// A task that was let in keeps its id when its claim in Redis is lost and another request takes the claim:
// the other one is refused, and the task runs, also if another router reads it again.
func TestALostClaimLosesNoTask(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	s := harness.Get(t, harness.Disruptable)
	in := harness.Install(t, s, map[string]any{"task.recent_ttl": "0s"})
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 1, ServiceTime: time.Millisecond})
	p := in.Process(t, "serve")
	mine := harness.Chat("mine")
	mine.NotBefore = time.Now().Add(6 * time.Second) // the rest happens before, unless the machine is very slow
	p.API().Submit(t, mine)
	harness.Eventually(t, harness.Patience, "a router has it", func() bool {
		return harness.SQL[int](t, in, `SELECT count(*) FROM tasks WHERE task_id = 'mine' AND fingerprint IS NOT NULL`) == 1
	})

	s.EmptyRedis(t)
	dlq := in.Consume(t, stream.DLQ)
	for n := range 2 { // the second meets the claim of the first
		other := harness.Chat("mine")
		other.Model = "other"
		in.Produce(t, asRecord(t, other))
		dead := dlq.Until(t, "the other request is refused", func(all []*kgo.Record) bool { return len(all) == n+1 })
		require.Equal(t, "id_reused", harness.Header(dead[n], "dlq-reason"))
	}
	require.Zero(t, p.Term(t))
	p = in.Process(t, "serve")
	in.Await(t, []string{"mine"}, harness.Patience)
	require.Equal(t, task.Success, p.API().Status(t, "mine").State)
	in.CheckPromises(t, []string{"mine"}, nil)
}
