package router

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/task"
)

// Names are told to people by packages that do not know the router.
func TestNamesAgree(t *testing.T) {
	require.Equal(t, device.PolicyNames(), PolicyNames())
	require.Equal(t, device.ReasonNames(), reasonNames[1:])
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

// steers lets the scheduler look, and returns the policy that it hands over; nil
// for none.
func steers(t *testing.T, s *scheduler) *newPolicy {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.steer(t.Context()) }()
	select {
	case p := <-s.policies:
		require.NoError(t, wait(t, done, "the end of the look"))
		return &p
	case err := <-done:
		require.NoError(t, err)
		return nil
	case <-time.After(patience):
		require.FailNow(t, "it does not end")
		return nil
	}
}

func TestSteering(t *testing.T) {
	cfg := testConfig()
	cfg.Binding = "auto"
	s := newTestScheduler(t, cfg)
	r := &Router{cfg: cfg, sched: s}
	require.Nil(t, steers(t, s), "nobody said anything")

	_, err := s.deps.Control.SetPolicy(t.Context(), &device.PolicySetting{Name: "round_robin", Binding: "late"})
	require.NoError(t, err)
	p := steers(t, s)
	require.Equal(t, "round_robin", p.policy.Name())
	require.Equal(t, "late", p.binding)
	require.Nil(t, steers(t, s), "it has it")

	// The file changes beneath it, and applies when the operator's word ends.
	next := cfg
	next.Policy = "fifo"
	require.NoError(t, r.Reload(next))
	select {
	case <-s.look:
	default:
		require.Fail(t, "the file's change is looked at at once")
	}
	require.Nil(t, steers(t, s), "the operator's word goes over the file's")
	bad := cfg
	bad.Policy = "best"
	require.Error(t, r.Reload(bad))
	_, err = s.deps.Control.SetPolicy(t.Context(), nil)
	require.NoError(t, err)
	p = steers(t, s)
	require.Equal(t, "fifo", p.policy.Name())
	require.Equal(t, "auto", p.binding)

	// Weights are the operator's, or else the file's.
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

func TestChangedPrioritiesAreAskedFor(t *testing.T) {
	s := newTestScheduler(t, testConfig())
	a, b := task.Key{Tenant: "t", ID: "a"}, task.Key{Tenant: "t", ID: "b"}
	require.NoError(t, s.deps.Cancels.Rerank(t.Context(), device.Repriority{Key: a, Priority: task.Low, Level: -1}))
	require.NoError(t, s.deps.Cancels.Rerank(t.Context(), device.Repriority{Key: a, Priority: task.High, Level: 3}))
	s.rankChanges(t.Context(), []task.Key{a, b})
	require.Equal(t, []device.Repriority{{Key: a, Priority: task.High, Level: 3}}, <-s.priorities, "what it is to be now, once")
	s.rankChanges(t.Context(), []task.Key{b})
	require.Empty(t, s.priorities)

	// Messages were missed: all that wait are asked for, cancels and changes in one.
	for _, k := range []task.Key{a, b} {
		s.put(t, &task.Task{Tenant: k.Tenant, ID: k.ID, Model: "m", Priority: task.Normal})
	}
	s.recheckMarks()
	require.Equal(t, task.High, s.window.byKey[a].task.Priority)
	require.Equal(t, 3, s.window.byKey[a].task.Level)
	require.Equal(t, task.Normal, s.window.byKey[b].task.Priority)
}
