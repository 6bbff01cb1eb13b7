package lifecycle_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/lifecycle"
)

// trace collects what happens, in order; the parts of one test run one after the other.
type trace struct{ steps []string }

func (t *trace) part(name string) lifecycle.Part {
	return lifecycle.Func(func(ctx context.Context) { <-ctx.Done(); t.steps = append(t.steps, name) })
}

func (t *trace) close(name string) func(context.Context) error {
	return func(context.Context) error { t.steps = append(t.steps, name); return nil }
}

func TestPhasesStopInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var tr trace
		done := make(chan error)
		go func() {
			done <- lifecycle.Run(ctx,
				lifecycle.Phase{Name: "consumer", Parts: []lifecycle.Part{tr.part("read")}},
				lifecycle.Phase{Name: "outbox", Close: tr.close("flush")},
				lifecycle.Phase{Name: "leases", Parts: []lifecycle.Part{tr.part("renew")}, Close: tr.close("leave")})
		}()
		synctest.Wait()
		require.Empty(t, tr.steps)
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, []string{"read", "flush", "renew", "leave"}, tr.steps)
	})
}

func TestAPartThatFailsStopsTheStage(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var tr trace
	err := lifecycle.Run(t.Context(),
		lifecycle.Phase{Name: "consumer", Parts: []lifecycle.Part{func(context.Context) error { return broken }}},
		lifecycle.Phase{Name: "outbox", Close: func(context.Context) error { return errors.New("not flushed") }},
		lifecycle.Phase{Name: "leases", Parts: []lifecycle.Part{tr.part("renew")}})
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, "closing the outbox: not flushed")
	require.Equal(t, []string{"renew"}, tr.steps)
}

func TestTheEndOfTheContextIsNoFailure(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, lifecycle.Run(ctx, lifecycle.Phase{Name: "consumer", Parts: []lifecycle.Part{
		func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	}}))
}

func TestCloseIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		err := lifecycle.Run(ctx, lifecycle.Phase{Name: "outbox", CloseTimeout: time.Minute, Close: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(began))
	})
}

func TestCountdown(t *testing.T) {
	t.Parallel()
	calls := 0
	down := lifecycle.Countdown(2, func() { calls++ })
	down()
	require.Zero(t, calls)
	down()
	down()
	require.Equal(t, 1, calls)
}
