package store

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// gate holds commands back until it is opened. A command whose context has ended by then fails, as
// it does on the network.
type gate struct {
	arrived chan struct{}
	opened  chan struct{}
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook { return next }

func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		select {
		case g.arrived <- struct{}{}:
		default:
		}
		<-g.opened
		if err := ctx.Err(); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

// heldCredit returns credits with one lease of a pool, and a renewer whose commands wait at a gate.
func heldCredit(t *testing.T) (*Credits, *LeaseRenewer, task.Lease, *gate) {
	t.Helper()
	m := miniredis.RunT(t)
	credits := NewCredits(client(t, m.Addr()), Config{}, "t:")
	grants, err := credits.Acquire(t.Context(), "r", []device.Want{{Pool: "a/single", N: 1, Limit: 1}})
	require.NoError(t, err)
	require.Equal(t, 1, grants[0].N)
	g := &gate{arrived: make(chan struct{}, 1), opened: make(chan struct{})}
	gated := client(t, m.Addr())
	gated.AddHook(g)
	renewer := NewLeaseRenewer(NewCredits(gated, Config{}, "t:"), slog.New(slog.DiscardHandler))
	lease := task.Lease{Pool: grants[0].Pool, ID: grants[0].Lease}
	renewer.Hold(lease)
	return credits, renewer, lease, g
}

// A worker that stops releases the credits of the requests that just ended; without that, their
// slots would be idle until the leases expire.
func TestReleaseInFlightOutlivesTheStop(t *testing.T) {
	credits, renewer, lease, g := heldCredit(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		renewer.Run(ctx)
	}()
	renewer.Release(lease)
	wait(t, g.arrived, "the release")
	stop()
	close(g.opened)
	wait(t, done, "the end of Run")
	used, err := credits.Used(t.Context(), []string{"a/single"})
	require.NoError(t, err)
	require.Equal(t, []int{0}, used)
}

// A Redis that does not answer delays the stop only for a bounded time.
func TestReleaseInFlightIsBoundedAfterTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rdb := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{"127.0.0.1:1"}})
		defer func() { require.NoError(t, rdb.Close()) }()
		rdb.AddHook(silence{})
		renewer := NewLeaseRenewer(NewCredits(rdb, Config{}, "t:"), slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			renewer.Run(ctx)
		}()
		renewer.Release(task.Lease{Pool: "a/single", ID: "x"})
		synctest.Wait()
		stop()
		began := time.Now()
		<-done
		require.LessOrEqual(t, time.Since(began), releaseTimeout)
	})
}

// silence answers no command.
type silence struct{}

func (silence) DialHook(next redis.DialHook) redis.DialHook { return next }

func (silence) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (silence) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		<-ctx.Done()
		cmd.SetErr(ctx.Err())
		return ctx.Err()
	}
}
