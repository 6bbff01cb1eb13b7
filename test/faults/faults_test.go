// Package faults kills each stage at each point of package fault, restarts it, and
// checks that all promises are kept. The points are between what a stage reads, what
// it writes to Postgres and what it commits to Kafka. Like the other end-to-end
// tests, it runs on embedded and on real services.
package faults

import (
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// TestMain runs more tests in parallel than there are processors, because they mostly
// wait for the broker to notice that a process died.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("8") // a valid number
	}
	harness.Main(m)
}

// stages are the arguments of batchyard serve.
var stages = []string{"api", "router", "batcher", "workers", "audit", "callbacks"}

// victims lists where each stage dies, and at which pass. Several stages reach the
// points of stream and producer, and a death there has a different effect in each.
var victims = []struct {
	name, stage string
	points      []string
	settings    map[string]any
}{
	{name: "api", stage: "api", points: []string{
		"producer.before_write:2", "producer.between:2", "producer.after_events:2", "api.before_answer:2",
		"stream.before_events:2", "stream.after_ack:3"}},
	{name: "router reads", stage: "router", points: []string{
		"router.after_read:3", "router.after_claim:3", "router.after_arrival:3", "stream.before_commit:3", "stream.after_commit:3"}},
	{name: "router writes", stage: "router", points: []string{
		"router.after_credits:3", "router.before_assignment:5", "router.after_assignment:5", "router.after_end",
		"stream.before_events:3", "stream.after_ack:5"}},
	{name: "batcher", stage: "batcher", points: []string{
		"batcher.after_read:3", "batcher.before_batch:5", "batcher.after_batch:5",
		"stream.before_commit:3", "stream.after_commit:3", "stream.before_events:3", "stream.after_ack:5"}},
	{name: "workers run", stage: "workers", points: []string{
		"workers.after_read:5", "workers.before_request:12", "workers.after_answer:12", "workers.before_result:12", "workers.after_result:12"}},
	// Events are written late, so that the results before them are acknowledged first.
	{name: "workers write", stage: "workers", settings: map[string]any{"kafka.event_linger": "150ms"}, points: []string{
		"stream.before_events:3", "stream.after_ack:9", "stream.before_commit:3", "stream.after_commit:3"}},
	{name: "audit", stage: "audit", points: []string{
		"audit.after_acquire:3", "audit.before_begin:4", "audit.after_results:4", "audit.after_copy:4", "audit.before_commit:4", "audit.after_commit:4",
		"stream.before_commit:3", "stream.after_commit:3"}},
	{name: "callbacks", stage: "callbacks", points: []string{
		"callbacks.after_claim:5", "callbacks.after_delivery:5", "callbacks.after_event:5", "callbacks.after_row:5",
		"stream.before_events:3", "stream.after_ack:3"}},
}

// TestEachPointIsCovered keeps the table above complete.
func TestEachPointIsCovered(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{}
	for _, v := range victims {
		for _, p := range v.points {
			name, _, _ := strings.Cut(p, ":")
			covered[name] = true
		}
	}
	for _, p := range fault.Points {
		if strings.HasPrefix(p.Name, "feed.") {
			continue // TestBatchKilledAtEveryPoint
		}
		require.Truef(t, covered[p.Name], "no stage dies at %s", p.Name)
	}
}

// Wherever a stage dies, no row is missing or duplicated, each task has one result,
// and every callback is delivered.
func TestKilledAtEveryPoint(t *testing.T) {
	t.Parallel()
	for _, v := range victims {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, v.stage, v.settings)
			for i, point := range v.points {
				y.dieAt(t, i, point)
			}
		})
	}
}

// yard is an installation in which the stage that dies is a separate process.
type yard struct {
	in    *harness.Installation
	hooks *harness.Receiver
	stage string
	rest  *harness.Process
	ids   []string // of all submitted tasks
	begin time.Time
}

func newYard(t *testing.T, stage string, with map[string]any) *yard {
	t.Helper()
	settings := map[string]any{
		"kafka.partitions": 2, "kafka.session_timeout": "2s", "kafka.rebalance_timeout": "2s", "kafka.commit_interval": "50ms",
		"kafka.dial_timeout": "20s", "postgres.timeout": "20s", // a busy machine must not look like a missing one
		"devices.lease_ttl": "2s", "callbacks.unsigned": false, "callbacks.timeout": "1s",
	}
	for k, v := range with {
		settings[k] = v
	}
	y := &yard{in: harness.Install(t, harness.Get(t, harness.Shared), settings), stage: stage, begin: time.Now()}
	y.in.Program = harness.FaultBinary(t)
	devices := y.in.Fleet(t, fleet.Spec{ID: "fast", Models: []string{"m"}, Slots: 4, ServiceTime: 2 * time.Millisecond},
		fleet.Spec{ID: "shaky", Models: []string{"m"}, Slots: 2, ServiceTime: 5 * time.Millisecond})
	devices.Devices()[1].SetFault(fleet.Fault{Kind: fleet.Fail, Share: 0.2}) // so that some attempts are retried
	y.hooks = harness.Hooks(t, harness.Secret, func(id string, delivery int) int {
		if delivery == 1 && strings.HasSuffix(id, "5") {
			return http.StatusBadGateway
		}
		return http.StatusOK
	})
	others := slices.DeleteFunc(slices.Clone(stages), func(s string) bool { return s == stage })
	y.rest = y.in.Process(t, append([]string{"serve"}, others...)...)
	return y
}

// dieAt starts the stage so that it dies at the point, submits tasks, and restarts it
// after its death.
func (y *yard) dieAt(t *testing.T, round int, point string) {
	t.Helper()
	name, _, _ := strings.Cut(point, ":")
	armed := y.in.Begin(t, []string{fault.Env + "=" + point}, "serve", y.stage)
	server := y.rest
	if y.stage == "api" {
		armed.AwaitReady(t)
		server = armed
	}
	waves := y.submitUntil(t, server.API(), round, point, armed.Done())
	require.Containsf(t, armed.Log(), "killed at "+name, "%s exited for another reason", y.stage)
	died := time.Since(y.begin)
	// Other processes take over its deliveries when their leases expire after half a
	// minute. Expire them now.
	_, err := y.in.Pool(t).Exec(t.Context(), "UPDATE callbacks SET next_at = now() WHERE state = 'DUE' AND holder IS NOT NULL")
	require.NoError(t, err)

	restarted := y.in.Process(t, "serve", y.stage)
	for n := range waves {
		tasks := y.wave(round, n)
		if y.stage == "api" { // a client without an answer submits again
			restarted.API().Submit(t, tasks...)
		}
		for _, one := range tasks[:perWave] {
			y.ids = append(y.ids, one.ID)
		}
	}
	y.in.Await(t, y.ids, 2*harness.Patience)
	ended := time.Since(y.begin)
	y.in.CheckPromises(t, y.ids, y.hooks)
	require.Zero(t, restarted.Term(t), "the stage must stop cleanly")
	select {
	case <-y.rest.Done():
		t.Fatalf("the other stages exited with code %d", y.rest.ExitCode())
	default:
	}
	t.Logf("%-28s died after %5.1f s, all tasks ended after %5.1f s, checked after %5.1f s", point, died.Seconds(), ended.Seconds(), time.Since(y.begin).Seconds())
}

const (
	minWaves = 6
	maxWaves = 200
	perWave  = 7
)

// wave returns the n-th tasks of a round. One task of each wave waits in the router
// until it expires, and one is submitted again with the next wave.
func (y *yard) wave(round, n int) []*task.Task {
	tasks, _ := harness.Chats(fmt.Sprintf("r%d-%d", round, n), perWave)
	if y.stage != "api" { // the API may be down so long that the deadline has passed
		tasks[0].Model, tasks[0].Deadline = "unserved-model", time.Now().Add(700*time.Millisecond)
	}
	for _, one := range tasks {
		one.Callback = &task.Callback{URL: y.hooks.URL}
	}
	if n > 0 {
		tasks = append(tasks, &task.Task{ID: fmt.Sprintf("r%d-%d-%04d", round, n-1, perWave-1), Model: tasks[1].Model, Endpoint: tasks[1].Endpoint,
			Input: task.Input(fmt.Sprintf(`{"messages":[{"role":"user","content":"say r%d-%d-%04d"}]}`, round, n-1, perWave-1)), Callback: tasks[1].Callback})
	}
	return tasks
}

// submitUntil submits waves until the stage has died, at least minWaves, and returns
// their number.
func (y *yard) submitUntil(t *testing.T, api *harness.API, round int, point string, died <-chan struct{}) int {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond) // all at once, they would be handled together and reach few points
	defer tick.Stop()
	alive := true
	for n := range maxWaves {
		if !alive && n >= minWaves {
			return n
		}
		switch {
		case y.stage != "api":
			api.Submit(t, y.wave(round, n)...)
		case alive:
			// There may be no answer: that is what this test is about.
			answer, err := api.Try(t.Context(), http.MethodPost, "/v1/tasks", y.wave(round, n))
			if err == nil {
				require.Equalf(t, http.StatusAccepted, answer.Status, "%s", answer.Body)
			}
		}
		if alive {
			select {
			case <-died:
				alive = false
			case <-tick.C:
			}
		}
	}
	t.Fatalf("%s did not die at %s while %d tasks were submitted", y.stage, point, maxWaves*perWave)
	return 0
}
