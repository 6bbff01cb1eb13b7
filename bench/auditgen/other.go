package main

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/task"
)

const (
	taskColumns     = audit.TaskColumns + `, version`
	taskWidth       = 27
	resultColumns   = audit.ResultColumns + `, recorded_at`
	resultWidth     = 28
	callbackColumns = audit.DeliveryColumns + `, task_id, generation, url, host, next_at, created_at`
	callbackWidth   = 13
)

func (l *life) callbackURL() string {
	if l.t.Callback == nil {
		return ""
	}
	return l.t.Callback.URL
}

func (l *life) message() string {
	if l.class == "" {
		return ""
	}
	return "the device answered with status 503"
}

// row adds the row of the task in its current state.
func (m *maker) row(l *life) {
	r := m.tasks
	r.begin()
	r.text(l.t.Tenant, l.t.ID, string(l.state))
	r.int4(l.seq)
	r.int4(l.number)
	r.text(l.device, l.model, string(l.class), l.message())
	r.times(l.updated, l.finished, l.assigned, l.started)
	r.int2(2)
	r.times(l.submitted, l.t.Deadline)
	r.text(l.t.Endpoint, string(l.t.Priority), l.t.JobID, "", l.t.TraceID, l.callbackURL())
	r.int4(0)
	r.text("")
	r.int8(l.in)
	r.int8(l.out)
	version := int64(2 + l.number)
	m.events.Wrote(audit.DigestRow(audit.TaskRows, version, r.fields()))
	r.int8(version)
	if l.t.JobID != "" {
		k := [2]string{l.t.Tenant, l.t.JobID}
		if first, ok := m.jobs[k]; !ok || l.submitted.Before(first) {
			m.jobs[k] = l.submitted
		}
	}
}

// What devices answer.
const answerOutput = `{"choices":[{"message":{"content":"made up"}}]}`

var answerSum = sha256.Sum256([]byte(answerOutput))

// answer adds the result.
func (m *maker) answer(l *life) {
	r := m.ended
	r.begin()
	r.text(l.t.Tenant, l.t.ID, string(l.state))
	output, attempts := "", ""
	if l.state == task.Success {
		r.int4(200)
		output = answerOutput
	} else {
		r.int4(503)
	}
	if l.number > 1 {
		attempts = fmt.Sprintf(`[{"number":%d,"device_id":%q,"status":503,"class":"device"}]`, l.number, l.device)
	}
	r.text(output, string(l.class), l.message())
	r.int4(l.number)
	r.text(attempts)
	r.int8(l.in)
	r.int8(l.out)
	r.text(l.device, l.model, "", l.t.Endpoint, string(l.t.Priority), l.t.JobID, "", "", l.callbackURL(), l.t.TraceID)
	r.times(l.submitted, l.assigned, l.started, l.finished)
	r.int4(0)
	r.text("")
	m.events.Wrote(audit.DigestRow(audit.ResultRows, 0, r.fields()))
	r.times(m.commit)
}

// callback generates the deliveries of the result and the row of the callback.
func (m *maker) callback(l *life) {
	id := l.t.Run().CallbackID()
	host := "hooks." + l.t.Tenant + ".example"
	state, tries, status, problem := "DELIVERED", 1, 200, ""
	switch n := m.r.IntN(1000); {
	case n < 3:
		state, tries, status, problem = "GIVEN_UP", 8, 500, "status 500"
	case n < 20:
		tries = 2
	}
	l.number = 0
	var delivered, next time.Time
	said := -1 // the last event
	for try := 1; try <= tries; try++ {
		took := m.ms(60)
		l.at = l.at.Add(took)
		next = l.at.Add(time.Duration(try) * time.Minute)
		a := task.CallbackFailed
		switch {
		case try == tries && state == "DELIVERED":
			a, delivered = task.CallbackSent, l.at
		case try == tries:
			a = task.CallbackGivenUp
		}
		e, ok := m.tell(l, a, m.instance("callbacks"))
		if !ok {
			state, tries, delivered, status, problem = "DUE", try-1, time.Time{}, 500, "status 500"
			break
		}
		said = len(m.block) - 1
		e.ResourceType, e.ResourceID, e.Duration, e.Model = "callback", id, took, ""
		e.Detail = fmt.Appendf(nil, `{"delivery":%d,"host":"%s","status":%d}`, try, host, status)
		if a != task.CallbackSent {
			e.Outcome, e.ErrorClass = task.OutcomeFailed, task.ClassReceiver
			e.Detail = fmt.Appendf(nil, `{"delivery":%d,"host":"%s","problem":"status 500","status":500}`, try, host)
		}
		l.at = next
	}
	if state == "DELIVERED" || tries == 0 {
		problem = ""
	}
	r := m.hooks
	r.begin()
	r.text(id, l.t.Tenant, state)
	r.int4(tries)
	if tries == 0 {
		r.text("")
	} else {
		r.int4(status)
	}
	r.text(problem)
	r.times(delivered)
	if said >= 0 {
		d := audit.DigestRow(audit.DeliveryRows, int64(tries), r.fields())
		e := &m.block[said]
		e.Detail = append(e.Detail[:len(e.Detail)-1], `,"digests":"`+audit.TextOfDigests(d.Append(nil))+`"}`...)
	}
	r.text(l.t.ID)
	r.int4(0)
	r.text(l.callbackURL(), host)
	r.times(next, m.commit)

	var fixed rows
	fixed.begin()
	fixed.text(id, l.t.Tenant, l.t.ID)
	fixed.int4(0)
	fixed.text("", "", l.callbackURL(), host)
	m.events.Wrote(audit.DigestRow(audit.CallbackRows, 0, fixed.fields()))
}

// beside adds events that belong to no task: refused submissions, three per block.
func (m *maker) beside(from time.Time, span time.Duration) {
	for range 3 {
		at := from.Add(time.Duration(m.r.Int64N(int64(span))))
		tenant := tenants.pick(m.r)
		e := task.Event{Time: at, Action: task.TaskRefused, Outcome: task.OutcomeRefused, Tenant: tenant, ActorType: task.ActorUser, ActorID: tenant,
			SourceAddr: fmt.Sprintf("10.%d.0.%d:50000", len(tenant), 1+m.r.IntN(sourcesEach)), UserAgent: agents[m.r.IntN(len(agents))],
			ResourceType: "task", ErrorClass: task.ClassInvalid, TraceID: m.hex(32),
			Detail: []byte([]string{`{"errors":["model"],"status":422}`, `{"errors":["input"],"status":422}`, `{"errors":["callback.url"],"status":422}`, `{"errors":null,"status":413}`}[m.r.IntN(4)])}
		m.plain(e)
	}
}

// joinDevices adds the events of all devices joining.
func (m *maker) joinDevices(day time.Time) {
	for d := 1; d <= deviceCount; d++ {
		m.deviceEvent(fmt.Sprintf("gpu-%d", d), day.Add(time.Second), task.DeviceJoined, `{"slots":8}`)
	}
}

// devices adds the events of the devices on one day: breakers that open and close,
// an occasional device that goes silent, and the actions of an operator.
func (m *maker) devices(day time.Time) {
	for range 4 {
		e := task.Event{Time: day.Add(time.Duration(m.r.Int64N(int64(23 * time.Hour)))), Action: task.DeviceDrained, Outcome: task.OutcomeOK, Tenant: "acme",
			ActorType: task.ActorUser, ActorID: "alice", SourceAddr: "10.4.0.1:41000", UserAgent: agents[0], ResourceType: "device",
			DeviceID: fmt.Sprintf("gpu-%d", 1+m.r.IntN(deviceCount)), TraceID: m.hex(32), Detail: []byte(`{"changed":true}`)}
		e.ResourceID = e.DeviceID
		m.plain(e)
		e.Time, e.Action = e.Time.Add(10*time.Minute), task.DeviceUndrained
		m.plain(e)
	}
	for d := 1; d <= deviceCount; d++ {
		id := fmt.Sprintf("gpu-%d", d)
		for range m.r.IntN(6) {
			at := day.Add(time.Duration(m.r.Int64N(int64(23 * time.Hour))))
			m.deviceEvent(id, at, task.BreakerOpened, `{"failures":5}`)
			m.deviceEvent(id, at.Add(30*time.Second), task.BreakerHalfOpen, "")
			m.deviceEvent(id, at.Add(31*time.Second), task.BreakerClosed, "")
		}
		if m.r.IntN(5) == 0 {
			at := day.Add(time.Duration(m.r.Int64N(int64(20 * time.Hour))))
			m.deviceEvent(id, at, task.DeviceSilent, "")
			m.deviceEvent(id, at.Add(time.Duration(1+m.r.IntN(90))*time.Minute), task.DeviceJoined, `{"slots":8}`)
		}
	}
}

// deviceEvent adds an event about a device. The device itself reports that it joins;
// workers report the rest.
func (m *maker) deviceEvent(id string, at time.Time, a task.Action, detail string) {
	e := task.Event{Time: at, Action: a, Outcome: task.OutcomeOK, ActorType: task.ActorDevice, ActorID: id, ResourceType: "device", ResourceID: id, DeviceID: id}
	if a != task.DeviceJoined {
		e.ActorType, e.ActorID = task.ActorStage, m.instance("workers")
	}
	if detail != "" {
		e.Detail = []byte(detail)
	}
	m.plain(e)
}

// plain adds an event unless it is in the future.

func (m *maker) plain(e task.Event) {
	if !e.Time.After(m.now) {
		m.block = append(m.block, e)
	}
}
