package store

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/test/testenv"
)

// Whatever this machine's clock says, Redis' time counts. The test is not parallel: all others of this
// package would see the time, too.
func TestTheTimeIsRedis(t *testing.T) { //nolint:paralleltest // see above
	server := miniredis.RunT(t)
	c := NewClock(testenv.RedisAt(t, server.Addr()), "t:", testenv.Logger(t), metrics.New(nil))
	defer func() { clock.Observe(time.Now(), time.Now()) }()
	server.SetTime(time.Now().Add(-2 * time.Hour))
	require.NoError(t, c.Sync(t.Context()))
	require.InDelta(t, (2 * time.Hour).Seconds(), time.Since(clock.Now()).Seconds(), 60)
	require.Equal(t, "this machine's clock differs by 2h0m0s from Redis', whose time is used", c.Note())
	server.SetTime(time.Now())
	require.NoError(t, c.Sync(t.Context()))
	require.InDelta(t, 0, time.Since(clock.Now()).Seconds(), 60)
	require.Empty(t, c.Note())
	server.Close()
	require.Error(t, c.Sync(t.Context()))
}
