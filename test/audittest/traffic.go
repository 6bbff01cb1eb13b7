package audittest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/batchyard/batchyard/task"
)

func oneOf[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

// RandomTask returns what the stages write about a task that begins at a time: with everything that is
// counted, retries, batched requests, degraded models, a second result that is not taken, and details that
// Batchyard never writes.
func RandomTask(r *rand.Rand, id string, at time.Time) (es []task.Event, rs []*task.Result) {
	s := NewStory(id)
	s.At = at
	s.Task.Tenant, s.Task.Model = oneOf(r, "acme", "blue"), oneOf(r, "m", "n", "")
	s.Task.JobID = oneOf(r, "", "job-1", "job-2")
	s.Task.SubmittedAt = at
	if r.IntN(3) == 0 {
		s.Task.Callback = &task.Callback{URL: oneOf(r, "https://one.example/hook", "https://two.example/hook")}
	}
	took := func(e task.Event) task.Event {
		if r.IntN(8) > 0 { // otherwise it took no time that could be measured
			e.Duration = time.Duration(r.ExpFloat64() * float64(50*time.Millisecond))
		}
		return e
	}
	es = append(es, task.Accepted(s.Task, task.Origin{
		Actor: s.Task.Tenant, UserAgent: oneOf(r, "", "curl"), Addr: randomSource(r),
	}, s.Tick()), s.Event(task.TaskQueued, 0, ""))
	device := fmt.Sprint("gpu-", r.IntN(3))
	for attempt := 1; attempt <= 3; attempt++ {
		es = append(es, took(s.Event(task.TaskAssigned, attempt, device)))
		if r.IntN(9) == 0 { // it waits
			return es, nil
		}
		b := took(s.Event(task.BatchClosed, attempt, device))
		b.Detail = [][]byte{[]byte(fmt.Sprintf(`{"bytes":%d,"reason":"idle","tasks":%d}`, r.IntN(9999), 1+r.IntN(4))),
			[]byte(`{"tasks": 7, "reason": "moon", "bytes": 3}`), nil, []byte(`{"broken`)}[min(r.IntN(20), 3)]
		es = append(es, b, s.Event(task.AttemptStarted, attempt, device))
		if r.IntN(3) > 0 {
			done := took(s.Event(task.AttemptSucceeded, attempt, device))
			done.Detail = randomRequest(r)
			es = append(es, done)
			break
		}
		failed := took(s.Event(task.AttemptFailed, attempt, device))
		failed.Outcome, failed.ErrorClass, failed.Detail = task.OutcomeFailed, oneOf(r, task.ClassDevice, task.ClassTimeout), randomRequest(r)
		back := s.Event(task.TaskRequeued, attempt, device)
		back.ErrorClass, back.Detail = failed.ErrorClass, []byte(`{"reason":"device"}`)
		if r.IntN(2) == 0 {
			back.ErrorClass, back.Detail = "", []byte(`{"reason":"moved"}`)
		}
		es = append(es, failed, back, s.Event(task.TaskDegraded, attempt, device))
	}
	for range 1 + r.IntN(2) { // the second is not taken
		res := s.Result(oneOf(r, task.Success, task.Failed, task.Expired, task.Cancelled), device)
		res.AssignedAt, res.StartedAt = at, at.Add(time.Duration(r.IntN(1e9)))
		res.Usage = task.Usage{InputTokens: r.Int64N(1000), OutputTokens: r.Int64N(1000)}
		rs = append(rs, res)
	}
	return append(es, took(s.Event(task.CallbackSent, 0, ""))), rs
}

// randomRequest returns the detail of an attempt, whose request may have been batched.
func randomRequest(r *rand.Rand) []byte {
	if n := 1 + r.IntN(4); n > 1 {
		return fmt.Appendf(nil, `{"request_index":%d,"request_tasks":%d,"status":200}`, r.IntN(n), n)
	}
	return oneOf(r, nil, []byte(`{"status":200}`), []byte(`{"message":"\"request_index\":7"}`))
}

func randomSource(r *rand.Rand) string {
	return oneOf(r, "", fmt.Sprint("203.0.113.7:", r.IntN(9999)), "[::1]:80", fmt.Sprint("kafka:tasks.low/3@", r.IntN(99)), "unknown")
}

// RandomFleet returns what is written about devices between two times, in order: presence, breakers, drains
// by people, and some that were refused.
func RandomFleet(r *rand.Rand, from, to time.Time) (es []task.Event) {
	for i := range 4 { // the last one runs nothing
		device := fmt.Sprint("gpu-", i)
		for at := from.Add(time.Duration(r.Int64N(int64(time.Hour)))); at.Before(to); at = at.Add(time.Duration(r.ExpFloat64() * float64(7*time.Hour))) {
			e := task.Event{Time: at.Truncate(time.Microsecond), Action: oneOf(r, task.DeviceJoined, task.DeviceSilent, task.DeviceLeft, task.BreakerOpened, task.BreakerHalfOpen,
				task.BreakerClosed, task.DeviceDrained, task.DeviceUndrained), Outcome: oneOf(r, task.OutcomeOK, task.OutcomeOK, task.OutcomeOK, task.OutcomeRefused),
				Tenant: task.DefaultTenant, ActorType: task.ActorStage, ActorID: "router@test-1", ResourceType: "device", ResourceID: device, DeviceID: device}
			if e.Action == task.DeviceDrained || e.Action == task.DeviceUndrained {
				e.ActorType, e.ActorID, e.SourceAddr = task.ActorUser, oneOf(r, "ops", "night"), randomSource(r)
			}
			es = append(es, e)
		}
	}
	return es
}

// RandomRefusals returns n events of what was refused or done by people at random times.
func RandomRefusals(r *rand.Rand, from, to time.Time, n int) (es []task.Event) {
	for range n {
		e := task.Event{Time: from.Add(time.Duration(r.Int64N(int64(to.Sub(from))))).Truncate(time.Microsecond), Tenant: oneOf(r, "acme", "blue", task.DefaultTenant),
			Action: oneOf(r, task.TaskRefused, task.RecordDeadLettered, task.TaskDuplicate, task.PolicyChanged, task.JobCancelRequested), Outcome: task.OutcomeRefused,
			ActorType: task.ActorUser, ActorID: "acme", SourceAddr: randomSource(r), ErrorClass: task.ClassInvalid, ResourceType: "record",
			Detail: oneOf(r, nil, []byte(`{"status":422,"errors":"model is missing"}`), []byte(`{"stage":"audit","reason":"unreadable","error":"not a frame"}`))}
		if e.Action == task.PolicyChanged {
			e.Outcome = oneOf(r, task.OutcomeOK, task.OutcomeRefused)
		}
		if e.Action == task.RecordDeadLettered {
			e.ActorType, e.ActorID = task.ActorStage, "audit@test-1"
		}
		es = append(es, e)
	}
	return es
}
