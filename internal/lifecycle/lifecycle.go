// Package lifecycle starts the parts of a stage together and stops them in order.
//
//	start ──▶ running ──▶ draining ──▶ closed
//	          │           ▲
//	          └───────────┘ the context ends, or a part fails
//
// A stage is a list of phases. All phases start at once. When the stage's context ends, or
// a part returns an error, the phases stop one after the other, in the order of the list:
// the phase's context is cancelled, its parts return, and its Close runs. So whatever
// feeds others comes first in the list (the consumers), and what others still need while
// they drain comes last (the outbox, the leases).
//
// Nothing here survives the death of the process, and nothing needs to: a stage commits an
// input only when its outputs are acknowledged, so a stop that is cut short is a crash.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Part is one goroutine of a phase. It returns when its context ends; a non-nil error
// stops the whole stage. An error that only reports the end of the context is ignored.
type Part func(ctx context.Context) error

// Func makes a Part of a function that cannot fail.
func Func(f func(ctx context.Context)) Part {
	return func(ctx context.Context) error { f(ctx); return nil }
}

// Phase is what stops together.
type Phase struct {
	Name  string // in errors: "closing the outbox"
	Parts []Part
	// Close, if set, runs once all parts have returned. Its context outlives the stage's,
	// and ends after CloseTimeout.
	Close        func(ctx context.Context) error
	CloseTimeout time.Duration // 0: 5 s
}

const defaultCloseTimeout = 5 * time.Second

// Run starts all phases, waits until ctx ends or a part fails, and stops the phases in
// order. It returns the first error of a part, joined with those of the Close functions;
// nil means an orderly stop.
func Run(ctx context.Context, phases ...Phase) error {
	stopping, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	running := make([]*phaseRun, len(phases))
	for i := range phases {
		running[i] = startPhase(ctx, &phases[i], stop)
	}
	<-stopping.Done()
	var errs []error
	if cause := context.Cause(stopping); ctx.Err() == nil && cause != nil {
		errs = append(errs, cause)
	}
	for _, p := range running {
		errs = append(errs, p.stop(ctx))
	}
	return errors.Join(errs...)
}

// phaseRun is a phase that was started.
type phaseRun struct {
	*Phase
	cancel context.CancelFunc
	parts  sync.WaitGroup
}

// startPhase starts the parts of a phase; their context outlives ctx, because earlier phases
// drain into later ones.
func startPhase(ctx context.Context, p *Phase, fail context.CancelCauseFunc) *phaseRun {
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &phaseRun{Phase: p, cancel: cancel}
	for _, part := range p.Parts {
		r.parts.Go(func() {
			if err := part(working); err != nil && (working.Err() == nil || !errors.Is(err, working.Err())) {
				fail(err)
			}
		})
	}
	return r
}

// stop ends a phase and waits for it.
func (r *phaseRun) stop(ctx context.Context) error {
	r.cancel()
	r.parts.Wait()
	if r.Close == nil {
		return nil
	}
	timeout := r.CloseTimeout
	if timeout == 0 {
		timeout = defaultCloseTimeout
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := r.Close(closing); err != nil {
		return fmt.Errorf("closing the %s: %w", r.Name, err)
	}
	return nil
}

// Countdown returns a function that calls ready when it has been called n times; further
// calls do nothing. A stage with several consumers is ready when the last has joined.
func Countdown(n int, ready func()) func() {
	var left atomic.Int64
	left.Store(int64(n))
	return func() {
		if left.Add(-1) == 0 && ready != nil {
			ready()
		}
	}
}
