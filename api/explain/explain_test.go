package explain

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

func TestEachReasonHasAText(t *testing.T) {
	require.Len(t, reasonTexts, len(device.ReasonNames())+1)
}

// A cause stays the same while figures change, and differs from the others.
func TestCause(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range []Why{
		{State: task.Pending},
		{State: task.Running, Attempts: []Placement{{DeviceID: "a"}}},
		{State: task.Running, Attempts: []Placement{{DeviceID: "b"}}},
		{State: task.Assigned, Attempts: []Placement{{DeviceID: "b"}}},
		{Waiting: &Waiting{}},
		{Waiting: &Waiting{Read: true}},
		{Waiting: &Waiting{Read: true, Devices: 2, Able: 1, Model: "m"}},
		{Waiting: &Waiting{Read: true, Devices: 2, Model: "m", Out: map[string]int{"model": 2}}},
		{Waiting: &Waiting{Read: true, Devices: 2, Model: "n", Out: map[string]int{"model": 2}}},
		{Waiting: &Waiting{Read: true, Devices: 2, Model: "m", Out: map[string]int{"model": 1, "silent": 1}}},
	} {
		cause := w.Cause()
		require.False(t, seen[cause], cause)
		seen[cause] = true
		if w.Waiting != nil && w.Waiting.Able > 0 {
			w.Waiting.Used, w.Waiting.Able = 7, 2
		}
		require.Equal(t, cause, w.Cause())
	}
}
