package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

func TestTaskList(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	before := func(d time.Duration) *time.Time { at := noon.Add(-d); return &at }
	require.NoError(t, showTasks(c, []batchyard.TaskStatus{
		{TaskID: "a-1", State: task.Running, Model: "m", Priority: task.High, Attempt: 1, DeviceID: "gpu-1", SubmittedAt: before(3 * time.Second)},
		{TaskID: "c", State: task.Pending, Model: "m", Priority: task.High, Attempt: 1, DeviceID: "gpu-1", SubmittedAt: before(4 * time.Second),
			LastError: &task.Error{Class: task.ClassConnect, Message: "device gpu-1 cannot be reached"}},
		{TaskID: "b", State: task.Failed, Model: "m", Priority: task.Low, Attempt: 3, DeviceID: "gpu-2", SubmittedAt: before(time.Hour),
			FinishedAt: before(5 * time.Minute), Error: &task.Error{Class: task.ClassTimeout, Message: "x"}},
	}, 0))
	require.Equal(t, strings.TrimLeft(`
ID   STATE    MODEL  PRIORITY  ATTEMPT  DEVICE  SUBMITTED  FINISHED  ERROR
a-1  RUNNING  m      high      1        gpu-1   3s ago     -         -
c    PENDING  m      high      1        gpu-1   4s ago     -         last connect: device gpu-1 cannot be reached
b    FAILED   m      low       3        gpu-2   60m ago    5m ago    timeout
`, "\n"), b.String())
}

func TestDeviceList(t *testing.T) {
	t.Parallel()
	c, b := shownAt()
	two, later, long := 2, noon.Add(20*time.Second), noon.Add(-time.Hour)
	require.NoError(t, showDevices(c, []batchyard.Device{
		{DeviceID: "z", URL: "http://z", Models: []string{"*"}, Slots: 1, Silent: true, State: "silent", Reason: "no heartbeat", Since: &long, SeenAt: noon.Add(-time.Hour), PausedUntil: &later},
		{DeviceID: "a", State: "up", Requests: batchyard.RequestFigures{Running: 1, Completed: 12, FailureRate: 0.25, MeanMS: 1234.5, TokensPerSecond: 41.7}, URL: "http://a", Models: []string{"m", "n"}, Tags: []string{"gpu"}, Slots: 8, CPU: 0.256, Mem: 0.5, LatencyMS: 1.26, InFlight: &two, SeenAt: noon.Add(-2 * time.Second),
			Declines: []batchyard.Declines{{Endpoint: task.EndpointChat, Model: "m", Status: 404, Why: "no_endpoint", Until: noon.Add(30 * time.Second)}},
			MaxBatch: map[string]int{"n": 32}, Context: map[string]int{"m": 4096, "n": 512}, Concurrency: 3},
	}))
	require.Equal(t, strings.TrimLeft(`
ID  STATE   SINCE    SLOTS   RUNNING  DONE  FAILED  MEAN    TOKENS/S  IN FLIGHT  QUEUE  CPU  MEM  IO  LATENCY  SEEN     MODELS  TAGS  URL       NOTES
a   up      -        3 of 8  1        12    25%     1234ms  42        2          -      26%  50%  0%  1.3ms    2s ago   m,n     gpu   http://a  refuses /v1/chat/completions for m (404, no_endpoint), tried again in 30s; context of 4096 (m), 512 (n) tokens; takes 32 items of n at once
z   silent  60m ago  1       0        0     0%      -       -         -          -      -    -    -   0.0ms    60m ago  *       -     http://z  no heartbeat; asked for a pause of 20s
`, "\n"), b.String())
}

func TestSummary(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	at, last := noon.Add(-time.Minute), noon.Add(-58*time.Second)
	s := summaryOf(&task.Job{
		JobID: "j", State: task.JobFinished, Total: 10, Done: 10, Tasks: map[task.State]int64{task.Success: 8, task.Failed: 2}, At: &at, LastDone: &last,
		Devices: map[string]int64{"b": 4, "a": 4}, Errors: []task.JobError{{Class: task.ClassInvalid, Tasks: 1, Sample: "device a answered 400:\n no"}, {Tasks: 1}},
		Usage: task.Usage{InputTokens: 70, OutputTokens: 300}, Rate: 4.5, Seconds: 12.4,
	}, noon)
	s.BadLines, s.BadFile, s.Output, s.Missing = 3, "in.bad.jsonl", "out.jsonl", 1
	require.NoError(t, s.print(&b))
	require.Equal(t, strings.TrimLeft(`
job                 j
state               FINISHED
tasks               10
  SUCCESS           8
  FAILED            2
  without a result  1
bad lines           3, not submitted: see in.bad.jsonl
errors              2
  invalid           1, such as: device a answered 400:· no
  without a class   1, such as: no message
devices             2
  a                 4
  b                 4
tokens              70 in, 300 out
time                2s
rate                4.5 tasks/s
remaining           about 12s
results             out.jsonl
`, "\n"), b.String())
	require.ErrorContains(t, s.failed(), "3 bad lines not submitted: in.bad.jsonl has the errors")
	require.Equal(t, cli.ExitFailed, cli.CodeOf(s.failed()))
	require.ErrorContains(t, s.failed(), "2 of 10 tasks")
	require.NoError(t, (&summary{Total: 1, ByState: map[task.State]int{task.Success: 1}}).failed())
}

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// shownAt is a cli that writes into a buffer, at noon.
func shownAt() (*cli.Env, *bytes.Buffer) {
	var b bytes.Buffer
	c := newCLI(strings.NewReader(""), &b, &b)
	c.Now = func() time.Time { return noon }
	return c, &b
}
