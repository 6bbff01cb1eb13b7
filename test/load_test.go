package test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// stages are the arguments of batchyard serve, one process each.
var stages = []string{"api", "router", "batcher", "workers", "audit", "callbacks"}

// loadSettings returns the settings of tests under load, overridden by with. Callbacks
// are signed, and leases of dead processes expire quickly.
func loadSettings(with map[string]any) map[string]any {
	s := map[string]any{
		"callbacks.secret_env": harness.SecretEnv, "callbacks.unsigned": false,
		"kafka.dial_timeout": "20s", "postgres.timeout": "20s", // a busy machine must not look like a missing one
		"callbacks.timeout": "2s", "callbacks.per_host": 32, "callbacks.retries": []string{"200ms", "500ms", "1s", "2s", "5s", "5s", "5s", "5s"},
	}
	for k, v := range with {
		s[k] = v
	}
	return s
}

// unequalFleet returns the specs of three different devices.
func unequalFleet() []fleet.Spec {
	return []fleet.Spec{
		{ID: "fast", Slots: 4, ServiceTime: 5 * time.Millisecond, Distribution: fleet.Exponential, Seed: 1},
		{ID: "slow", Slots: 4, ServiceTime: 20 * time.Millisecond, Distribution: fleet.Exponential, Seed: 2},
		{ID: "lone", Slots: 1, ServiceTime: 10 * time.Millisecond, Seed: 3},
	}
}

// sixProcesses starts each stage as a separate process.
func sixProcesses(t *testing.T, in *harness.Installation) map[string]*harness.Process {
	t.Helper()
	ps := map[string]*harness.Process{}
	for _, stage := range stages {
		ps[stage] = in.Begin(t, nil, "serve", stage)
	}
	for _, stage := range stages {
		ps[stage].AwaitReady(t)
	}
	return ps
}

// allAlive checks that no process has exited.
func allAlive(t *testing.T, ps map[string]*harness.Process) {
	t.Helper()
	for stage, p := range ps {
		select {
		case <-p.Done():
			t.Fatalf("the stage %s exited with code %d", stage, p.ExitCode())
		default:
		}
	}
}

// load is a client that submits tasks in portions, and retries each with the same ids
// until it is accepted.
type load struct {
	ids      []string
	accepted atomic.Int64
	done     chan struct{}
	mu       sync.Mutex
	err      error
}

const perSubmit = 50

// submit starts submitting n tasks.
func submit(t *testing.T, api *harness.API, prefix, hook string, n int) *load {
	t.Helper()
	tasks, ids := harness.Chats(prefix, n)
	for _, one := range tasks {
		if hook != "" {
			one.Callback = &task.Callback{URL: hook}
		}
	}
	l := &load{ids: ids, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() {
		cancel()
		<-l.done
	})
	go func() {
		defer close(l.done)
		for len(tasks) > 0 {
			some := tasks[:min(perSubmit, len(tasks))]
			if err := submitWithRetries(ctx, api, some); err != nil {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
				return
			}
			l.accepted.Add(int64(len(some)))
			tasks = tasks[len(some):]
		}
	}()
	return l
}

// submitWithRetries submits until the answer is 202. It returns an error if retries
// are pointless.
func submitWithRetries(ctx context.Context, api *harness.API, tasks []*task.Task) error {
	pause := time.NewTicker(50 * time.Millisecond)
	defer pause.Stop()
	for {
		answer, err := api.Try(ctx, http.MethodPost, "/v1/tasks", tasks)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil, answer.Status >= 500, answer.Status == http.StatusTooManyRequests: // down or busy
		case answer.Status == http.StatusAccepted:
			return nil
		default:
			return fmt.Errorf("submitting: %d %s", answer.Status, answer.Body)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wait waits until all tasks are accepted and returns their ids.
func (l *load) wait(t *testing.T) []string {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(3 * harness.Patience):
		t.Fatalf("only %d of %d tasks were accepted", l.accepted.Load(), len(l.ids))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	require.NoError(t, l.err)
	return l.ids
}

// timeline returns a function that logs events with the time since the start.
func timeline(t *testing.T) func(what string) {
	begin := time.Now()
	return func(what string) {
		t.Helper()
		t.Logf("%6.2fs  %s", time.Since(begin).Seconds(), what)
	}
}

// ended returns how many tasks have ended according to Postgres.
func ended(t *testing.T, in *harness.Installation) int {
	t.Helper()
	return harness.SQL[int](t, in, "SELECT count(*) FROM results")
}

// awaitSomeEnded waits until the given number of tasks have ended, and checks that not
// all of them have, so that what follows happens in the middle.
func awaitSomeEnded(t *testing.T, in *harness.Installation, least, all int) {
	t.Helper()
	n := 0
	harness.Eventually(t, 2*harness.Patience, fmt.Sprintf("%d tasks have ended", least), func() bool {
		n = ended(t, in)
		return n >= least
	})
	require.Less(t, n, all, "too late: all tasks have ended")
}
