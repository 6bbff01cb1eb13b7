package router

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/task"
)

// steering is which policy the router should use: the one set by an operator, or else the one in the
// configuration file. Both may change while the router runs. The loop that reads the fleet checks both,
// so all routers change within one refresh interval.
type steering struct {
	mu   sync.Mutex
	file Config // its policy, binding and weights are the file's

	// Only the loop that reads the fleet uses these.
	now     Config // what the decider has
	refused string // last error about a policy, so that it is logged once
}

// steered is the configuration with an operator's setting on top; nil for none.
func steered(file Config, set *device.PolicySetting) Config {
	if set == nil {
		return file
	}
	file.Policy, file.Binding = set.Name, set.Binding
	if file.Binding == "" {
		file.Binding = device.Bindings[0]
	}
	if weights := set.Texts(); len(weights) > 0 {
		file.Weights = weights
	}
	return file
}

func sameSteering(a, b Config) bool {
	return a.Policy == b.Policy && a.Binding == b.Binding && maps.Equal(a.Weights, b.Weights)
}

// Reload takes the policy, binding and weights from a configuration file that was read again; what an
// operator has set has precedence. The error says what is wrong; then nothing changes.
func (r *Router) Reload(cfg Config) error {
	if _, err := cfg.newPolicy(); err != nil {
		return err
	}
	st := &r.sched.steering
	st.mu.Lock()
	st.file.Policy, st.file.Binding, st.file.Weights = cfg.Policy, cfg.Binding, cfg.Weights
	st.mu.Unlock()
	signal(r.sched.refresh)
	return nil
}

// steer reads the operators' settings, and gives the decider another policy if it should have one.
// While Redis is away, nothing changes. If the process dies, the next router reads the same settings.
func (s *scheduler) steer(ctx context.Context) error {
	set, err := s.deps.Control.Load(ctx)
	if err != nil {
		return err
	}
	st := &s.steering
	st.mu.Lock()
	cfg := steered(st.file, set.Policy)
	st.mu.Unlock()
	if sameSteering(cfg, st.now) {
		return nil
	}
	p, err := cfg.newPolicy()
	if err != nil { // set through another version of Batchyard
		if text := err.Error(); text != st.refused {
			st.refused = text
			s.deps.Logger.Error("cannot use the policy that was set: keeping the current one", "policy", cfg.Policy, "error", err)
		}
		return nil
	}
	select {
	case s.policies <- policyChange{p, decide.Binding(cfg.Binding)}:
	case <-ctx.Done():
		return ctx.Err()
	}
	setBy := "configuration"
	if set.Policy != nil {
		setBy = "operator"
	}
	s.deps.Logger.Info("using another policy", "policy", cfg.Policy, "binding", cfg.Binding, "before", st.now.Policy, "set_by", setBy)
	st.now, st.refused = cfg, ""
	return nil
}

// maxOverrideWait bounds how long overrides are asked for while Redis does not answer. When it is
// back, the new subscription looks up all tasks.
const maxOverrideWait = 30 * time.Second

// lookUpChanges looks up the current priorities of tasks that were reprioritized, and passes them to
// the decider. The messages hold only keys, so the order of messages does not matter.
func (s *scheduler) lookUpChanges(ctx context.Context, keys []task.Key) {
	var overrides []device.Override
	err := backoff.Retry(func() (err error) {
		overrides, err = s.deps.Cancels.Get(ctx, keys...)
		return err
	}, backoff.WithContext(redisBackoff(maxOverrideWait), ctx))
	if err != nil {
		if ctx.Err() == nil {
			s.deps.Logger.Warn("cannot look up changed priorities in Redis: the tasks keep theirs for now", "tasks", len(keys), "error", err)
		}
		return
	}
	changes := make([]device.PriorityChange, 0, len(overrides))
	for i := range overrides {
		if !overrides[i].Zero() {
			changes = append(changes, overrides[i].PriorityChange)
		}
	}
	if len(changes) == 0 {
		return
	}
	select {
	case s.changes <- changes:
	case <-ctx.Done():
	}
}
