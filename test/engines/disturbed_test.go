package engines

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// cancels cancels tasks in the middle: the engine stops to compute. Nothing else may be asked of it meanwhile, not even
// its metrics: llama.cpp notices that its client has left only after a second in which it answered no request.
func (s *stack) cancels(t *testing.T) {
	run := func(t *testing.T, model string, tokens int) {
		t.Helper()
		began := s.large.said(t, "processing task")
		id := "cancelled-" + model
		s.api.Submit(t, newTask(id, model, task.EndpointChat, `{"messages":[{"role":"user","content":"Tell a story."}],"max_tokens":%d,"ignore_eos":true}`, tokens))
		harness.Eventually(t, patience, "the engine computes", func() bool { return s.large.said(t, "processing task") > began })
		require.Equal(t, http.StatusAccepted, s.api.Do(t, http.MethodPost, "/v1/tasks/"+id+"/cancel", nil).Status)
		s.in.Await(t, []string{id}, within)
		require.Equal(t, task.Cancelled, s.api.Status(t, id).State)
	}
	const tokens = 6000
	run(t, "smollm2-large", tokens)
	harness.Eventually(t, patience, "the engine stops", func() bool { return s.large.said(t, "cancel task") > 0 })
	require.Less(t, s.large.metric(t, "tokens_predicted_total"), float64(tokens), "before it has finished")
	// LiteLLM lets the engine go on when its client has left.
	run(t, "proxied-large", 300)
}

// restarts kills the engine in the middle of tasks, and starts it again.
func (s *stack) restarts(t *testing.T) {
	var tasks []*task.Task
	for i := range 16 {
		tk := chatTask(fmt.Sprint("restarted-", i), []string{"smollm2", "proxied-chat"}[i%2], 24)
		tk.MaxAttempts = 20
		tasks = append(tasks, tk)
	}
	ids := s.api.Submit(t, tasks...)
	ended := func() int {
		return harness.SQL[int](t, s.in, "SELECT count(*) FROM tasks WHERE state = 'SUCCESS' AND task_id LIKE 'restarted-%'")
	}
	harness.Eventually(t, within, "some have ended", func() bool { return ended() >= 2 })
	require.Less(t, ended(), len(ids), "it is killed in the middle")
	s.chat.kill(t)
	harness.Eventually(t, patience, "the device is seen to be down", func() bool { return s.device(t, "smollm2").State == "down" })
	require.Contains(t, s.device(t, "smollm2").Reason, "connection refused")
	s.chat.start(t)
	s.in.Await(t, ids, within)
	for _, id := range ids {
		st := s.api.Status(t, id)
		require.Equal(t, task.Success, st.State, "%s: %+v %+v", id, st.Error, st.Attempts)
	}
	require.Equal(t, len(ids), harness.SQL[int](t, s.in, "SELECT count(*) FROM results WHERE task_id LIKE 'restarted-%'"))
}
