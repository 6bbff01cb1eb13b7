package test

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/test/harness"
)

// Two routers notice that a device has gone silent, and exactly one records it.
func TestSilentDeviceIsRecordedOnce(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), map[string]any{"devices.heartbeat_timeout": "2s", "router.refresh_interval": "50ms"})
	in.Process(t, "serve", "api", "audit", "router")
	in.Process(t, "serve", "router")
	rdb := redis.NewClient(&redis.Options{Addr: in.Services.RedisAddr})
	t.Cleanup(func() { _ = rdb.Close() })
	beat := func() {
		_, err := device.NewRegistry(rdb, device.Config{}, in.RedisPrefix).Beat(t.Context(), device.Device{ID: "d", URL: "http://127.0.0.1:9", Models: []string{"m"}, Slots: 1})
		require.NoError(t, err)
	}
	for n := 1; n <= 2; n++ {
		beat()
		harness.Eventually(t, harness.Patience, "the silence is recorded", func() bool {
			return harness.SQL[int](t, in, "SELECT count(*) FROM device_history WHERE action = 'device.silent' AND device_id = 'd'") >= n
		})
	}
	beat() // once the other router has seen this, it would have recorded the second silence as well
	in.AwaitRecorded(t)
	require.Equal(t, 2, harness.SQL[int](t, in, "SELECT count(*) FROM device_history WHERE action = 'device.silent'"))
}
