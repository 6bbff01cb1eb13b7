package router

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

// Package device has the names that people choose from.
func TestNamesAgree(t *testing.T) {
	for _, s := range config.Describe(&Config{}) {
		switch s.Key {
		case "policy":
			require.ElementsMatch(t, device.PolicyNames(), s.Enum)
			require.Equal(t, device.DefaultPolicy, s.Default)
		case "binding":
			require.Equal(t, device.Bindings, s.Enum)
		}
	}
}

// steers lets the scheduler read the settings, and returns the policy that it passes to the decider; nil
// for none.
func steers(t *testing.T, s *scheduler) *policyChange {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.steer(t.Context()) }()
	select {
	case p := <-s.policies:
		require.NoError(t, testenv.Receive(t, done, "steer to return"))
		return &p
	case err := <-done:
		require.NoError(t, err)
		return nil
	case <-time.After(testenv.Patience):
		require.FailNow(t, "steer does not return")
		return nil
	}
}

func TestSteering(t *testing.T) {
	cfg := testConfig()
	cfg.Binding = "auto"
	s := newTestScheduler(t, cfg)
	r := &Router{cfg: cfg, sched: s}
	require.Nil(t, steers(t, s), "nothing was set")

	_, err := s.deps.Control.SetPolicy(t.Context(), &device.PolicySetting{Name: "round_robin", Binding: "late"})
	require.NoError(t, err)
	p := steers(t, s)
	require.Equal(t, "round_robin", p.policy.Name())
	require.Equal(t, decide.BindLate, p.binding)
	require.Nil(t, steers(t, s), "the decider has it already")

	// The file changes, and applies once the operator's setting is removed.
	next := cfg
	next.Policy = "fifo"
	require.NoError(t, r.Reload(next))
	select {
	case <-s.refresh:
	default:
		require.Fail(t, "the change of the file must be read at once")
	}
	require.Nil(t, steers(t, s), "the operator's setting has precedence")
	bad := cfg
	bad.Policy = "best"
	require.Error(t, r.Reload(bad))
	_, err = s.deps.Control.SetPolicy(t.Context(), nil)
	require.NoError(t, err)
	p = steers(t, s)
	require.Equal(t, "fifo", p.policy.Name())
	require.Equal(t, decide.BindAuto, p.binding)

	// Weights are the operator's, or else those of the file.
	next.Policy, next.Weights = "load_formula", map[string]string{"cpu": "1"}
	require.NoError(t, r.Reload(next))
	require.Equal(t, "load_formula", steers(t, s).policy.Name())
	_, err = s.deps.Control.SetPolicy(t.Context(), &device.PolicySetting{Name: "load_formula", Binding: "auto"})
	require.NoError(t, err)
	require.Nil(t, steers(t, s))
	_, err = s.deps.Control.SetPolicy(t.Context(), &device.PolicySetting{Name: "load_formula", Weights: map[string]float64{"mem": 1}})
	require.NoError(t, err)
	require.NotNil(t, steers(t, s))
}

func TestChangedPrioritiesAreLookedUp(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	a, b := task.Key{Tenant: "t", ID: "a"}, task.Key{Tenant: "t", ID: "b"}
	require.NoError(t, s.deps.Cancels.Reprioritize(t.Context(), device.PriorityChange{Key: a, Priority: task.Low, Level: -1}))
	require.NoError(t, s.deps.Cancels.Reprioritize(t.Context(), device.PriorityChange{Key: a, Priority: task.High, Level: 3}))
	s.lookUpChanges(t.Context(), []task.Key{a, b})
	require.Equal(t, []device.PriorityChange{{Key: a, Priority: task.High, Level: 3}}, <-s.changes, "the last change only")
	s.lookUpChanges(t.Context(), []task.Key{b})
	require.Empty(t, s.changes)

	// After missed messages, all waiting tasks are looked up.
	for _, k := range []task.Key{a, b} {
		require.Nil(t, s.decider.Add(newItem(&task.Task{Tenant: k.Tenant, ID: k.ID, Model: "m", Priority: task.Normal}, stream.TasksNormal), time.Now()))
	}
	s.recheckOverrides()
	require.Equal(t, task.High, pendingTask(t, s, a).Priority)
	require.Equal(t, 3, pendingTask(t, s, a).Level)
	require.Equal(t, task.Normal, pendingTask(t, s, b).Priority)
}

// pendingTask is a task in the scheduler's window.
func pendingTask(t *testing.T, s *scheduler, k task.Key) *task.Task {
	t.Helper()
	for it := range s.decider.Pending() {
		if it.Task.Key() == k {
			return it.Task
		}
	}
	require.FailNow(t, "not in the window", k)
	return nil
}
