package router

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// steering is by which policy the router chooses: what operators said, or, when
// they said nothing, the file. Both may change while the router runs; the loop
// that reads the fleet looks at both, and so all routers change within a refresh.
type steering struct {
	mu   sync.Mutex
	file Config // its policy, binding and weights are the file's

	// Of the goroutine that reads the fleet alone.
	now   Config // as the decider has it
	wrong string // what was said of a policy that cannot be had, so that it is said once
}

// steered is the configuration under what an operator said; nil for nothing.
func steered(file Config, said *device.PolicySetting) Config {
	if said == nil {
		return file
	}
	file.Policy, file.Binding = said.Name, said.Binding
	if file.Binding == "" {
		file.Binding = device.Bindings[0]
	}
	if texts := said.Texts(); len(texts) > 0 {
		file.Weights = texts
	}
	return file
}

func sameSteering(a, b Config) bool {
	return a.Policy == b.Policy && a.Binding == b.Binding && maps.Equal(a.Weights, b.Weights)
}

// Reload takes policy, binding and weights from a file that was read again; what
// operators said goes over them. The error says what is wrong; nothing changes then.
func (r *Router) Reload(cfg Config) error {
	if _, err := NewPolicy(cfg.Policy, cfg); err != nil {
		return err
	}
	st := &r.sched.steering
	st.mu.Lock()
	st.file.Policy, st.file.Binding, st.file.Weights = cfg.Policy, cfg.Binding, cfg.Weights
	st.mu.Unlock()
	r.sched.lookSoon()
	return nil
}

// steer reads what operators say and hands the decider another policy when it is
// to have one. Redis away: it stays as it is. If we die, the next router reads
// the same.
func (s *scheduler) steer(ctx context.Context) error {
	said, err := s.deps.Control.Load(ctx)
	if err != nil {
		return err
	}
	st := &s.steering
	st.mu.Lock()
	cfg := steered(st.file, said.Policy)
	st.mu.Unlock()
	if sameSteering(cfg, st.now) {
		return nil
	}
	policy, err := NewPolicy(cfg.Policy, cfg)
	if err != nil { // another version of Batchyard knows more
		if text := err.Error(); text != st.wrong {
			st.wrong = text
			s.deps.Logger.Error("the policy that was asked for cannot be had; the router goes on as before", "policy", cfg.Policy, "error", err)
		}
		return nil
	}
	select {
	case s.policies <- newPolicy{policy, cfg.Binding}:
	case <-ctx.Done():
		return ctx.Err()
	}
	by := "the configuration"
	if said.Policy != nil {
		by = "an operator"
	}
	s.deps.Logger.Info("devices are chosen by another policy", "policy", cfg.Policy, "binding", cfg.Binding, "before", st.now.Policy, "said_by", by)
	st.now, st.wrong = cfg, ""
	return nil
}

// rankWait bounds how long a change of priority is asked for while Redis does
// not answer. When it comes back, the new subscription asks for all.
const rankWait = 30 * time.Second

// rankChanges asks what the tasks are to be now, and tells the decider. Changes
// of one task so come in the order in which they are true.
func (s *scheduler) rankChanges(ctx context.Context, keys []task.Key) {
	var marks []device.Mark
	again := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(rankWait))
	err := backoff.Retry(func() (err error) {
		marks, err = s.deps.Cancels.Marks(ctx, keys...)
		return err
	}, backoff.WithContext(again, ctx))
	if err != nil {
		if ctx.Err() == nil {
			s.deps.Logger.Warn("priorities that somebody changed are not known; these tasks go as before", "tasks", len(keys), "error", err)
		}
		return
	}
	changes := make([]device.Repriority, 0, len(marks))
	for i := range marks {
		if !marks[i].Zero() {
			changes = append(changes, marks[i].Repriority)
		}
	}
	if len(changes) == 0 {
		return
	}
	select {
	case s.priorities <- changes:
	case <-ctx.Done():
	}
}

// lookSoon makes the fleet, and what operators say, be read again soon.
func (s *scheduler) lookSoon() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// gap makes the decider ask what is wanted of every task that it holds.
func (s *scheduler) gap() {
	select {
	case s.gaps <- struct{}{}:
	default:
	}
}
