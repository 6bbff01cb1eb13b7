package audittest

import (
	"crypto/sha256"
	"time"

	"github.com/batchyard/batchyard/task"
)

// Story makes what the stages write about one task, in the order of time.
type Story struct {
	Task *task.Task
	At   time.Time // of the last event
}

// NewStory begins the story of a task with the given id, of tenant acme and job job-1, an hour ago.
func NewStory(id string) *Story {
	at := time.Now().UTC().Truncate(time.Microsecond).Add(-time.Hour)
	t := &task.Task{ID: id, Tenant: "acme", Model: "m", Input: task.Input(`{}`), JobID: "job-1", CustomID: "line-" + id, Deadline: at.Add(time.Hour)}
	t.Normalize(at)
	return &Story{t, at}
}

// Tick lets a second pass and returns the time.
func (s *Story) Tick() time.Time {
	s.At = s.At.Add(time.Second)
	return s.At
}

// Accepted returns the event of the acceptance.
func (s *Story) Accepted() task.Event {
	return task.Accepted(s.Task, task.Origin{Actor: "acme", Addr: "203.0.113.7:4711", UserAgent: "test"}, s.Tick())
}

// Event returns an event of an attempt on a device.
func (s *Story) Event(a task.Action, attempt int, device string) task.Event {
	e := task.NewEvent(a, s.Task, "stage@test-1", s.Tick())
	e.Attempt, e.DeviceID = attempt, device
	return e
}

// Result returns the result, after attempts on the given devices.
func (s *Story) Result(st task.State, devices ...string) *task.Result {
	r := task.NewResult(s.Task, st, s.Tick())
	for i, d := range devices {
		r.Attempts = append(r.Attempts, task.Attempt{Number: i + 1, DeviceID: d, At: s.At})
		r.DeviceID = d
	}
	if st == task.Success {
		r.Output, r.Status = task.Input(`{"answer":42}`), 200
	} else {
		r.Error = &task.Error{Class: task.ClassDevice, Message: "it broke"}
	}
	return r
}

const (
	answer = `{"id":"chatcmpl-019cb1e56c5f","object":"chat.completion","created":1772300000,"model":"demo-chat","choices":[{"index":0,"finish_reason":"stop",` +
		`"message":{"role":"assistant","content":"A lantern for boats is a light that is kept where others can see it from the water, in any weather."}}],` +
		`"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}`
	whyAssigned = `{"policy":"expected_finish","why":"sim-gpu-4 finishes first, in 15.3 ms","of":6,"candidates":[{"device_id":"sim-gpu-4","score":15.343,"unit":"ms","used":3,"slots":4,"limit":6},` +
		`{"device_id":"sim-gpu-3","score":15.405,"unit":"ms","used":5,"slots":4,"limit":6}],"out":{}}`
)

// Life returns what the stages write about a task that succeeds: seven events and a result, of the
// size of those of a run of examples/mixed.jsonl (466 bytes a row, 720 a result).
func (s *Story) Life() ([]task.Event, *task.Result) {
	const device, batch = "sim-gpu-4", "019cb1e5-6c5f-7e3f-9d0a-3c8d9f0a5b1e"
	s.Task.TraceID, s.Task.JobID = "3d1c7f19caa22739271fe2dc129bf1a2", "job-2024e0884f1db5526c1bf3e3"
	es := []task.Event{s.Accepted(), s.Event(task.TaskQueued, 0, ""), s.Event(task.TaskAssigned, 1, device), s.Event(task.BatchClosed, 1, device),
		s.Event(task.AttemptStarted, 1, device), s.Event(task.AttemptSucceeded, 1, device), s.Event(task.TaskSucceeded, 1, device)}
	r := s.Result(task.Success, device)
	r.FinishedAt = es[6].Time // the worker stamps both with one time
	r.Output = task.Input(answer)
	r.Usage = task.Usage{InputTokens: 12, OutputTokens: 34}
	r.AssignedAt, r.StartedAt = es[2].Time, es[4].Time
	took := 10*time.Millisecond + time.Duration(s.At.UnixMicro()%20_000)*time.Microsecond // they differ, as in a histogram
	r.Attempts[0].Duration, r.Attempts[0].Model, r.Attempts[0].Status = took.Milliseconds(), s.Task.Model, 200
	es[1].SourceAddr = "kafka:tasks.normal/3@1234567"
	es[2].Detail = []byte(whyAssigned)
	es[3].Detail = []byte(`{"bytes":1200,"reason":"idle","tasks":4}`)
	es[5].Detail = []byte(`{"status":200}`)
	sum := sha256.Sum256(r.Output)
	es[5].OutputSize, es[5].OutputSHA256 = int64(len(r.Output)), sum[:]
	for _, i := range []int{2, 3, 5, 6} {
		es[i].Duration = time.Duration(i) * took / 4
	}
	for i := 3; i < len(es); i++ {
		es[i].BatchID = batch
	}
	for _, i := range []int{5, 6} {
		es[i].InputTokens, es[i].OutputTokens = r.Usage.InputTokens, r.Usage.OutputTokens
	}
	return es, r
}
