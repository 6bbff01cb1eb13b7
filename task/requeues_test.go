package task_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// A task may wait, and be written again, for as long as it takes: no number of requeues makes it invalid.
func TestNoNumberOfRequeuesEndsATask(t *testing.T) {
	tk := &task.Task{ID: "t", Model: "m", Input: task.Input(`{"messages":[]}`), Progress: &task.Progress{Requeues: 1 << 40}}
	tk.Normalize(time.Now())
	again := tk.Requeued()
	require.NoError(t, again.Validate(task.Limits{MaxInput: 1 << 20}))
	require.Equal(t, 1<<40+1, again.Requeues())
}
