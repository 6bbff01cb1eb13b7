package harness_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestTasksRunThroughInstallation(t *testing.T) {
	t.Parallel()
	in := harness.Install(t, harness.Get(t, harness.Shared), nil)
	in.Fleet(t, fleet.Spec{ID: "a", Slots: 8, ServiceTime: 2 * time.Millisecond}, fleet.Spec{ID: "b", Slots: 4, ServiceTime: 4 * time.Millisecond})
	p := in.Process(t, "serve")
	hooks := harness.Hooks(t, harness.Secret, nil)
	tasks, ids := harness.Chats("t", 100)
	for _, one := range tasks {
		one.Callback = &task.Callback{URL: hooks.URL}
	}
	require.Equal(t, ids, p.API().Submit(t, tasks...))
	in.Await(t, ids, time.Minute)
	in.CheckPromises(t, ids, hooks)
	require.Zero(t, p.Term(t))
}
