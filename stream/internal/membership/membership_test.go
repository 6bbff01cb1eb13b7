package membership

import (
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/heartbeat"
	"github.com/stretchr/testify/require"
)

// Heartbeat works around a bug of kafka-go. When the bug is fixed, this test fails and
// heartbeatError has to go.
func TestKafkaGoStillSwapsHeartbeatFields(t *testing.T) {
	wire := []byte{0, 0, 0, 0, 0, byte(kafka.RebalanceInProgress)} // throttle time, error
	var res heartbeat.Response
	require.NoError(t, protocol.Unmarshal(wire, 3, &res))
	require.Zero(t, res.ErrorCode)
	require.ErrorIs(t, heartbeatError(&res), kafka.RebalanceInProgress)
	wire[3] = 200 // throttled
	require.NoError(t, protocol.Unmarshal(wire, 3, &res))
	require.ErrorIs(t, heartbeatError(&res), kafka.RebalanceInProgress)
	require.NoError(t, heartbeatError(&heartbeat.Response{}))
}
