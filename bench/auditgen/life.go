package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit/recorder"
	"github.com/batchyard/batchyard/task"
)

// The made-up installation. The examples of docs/sql.md use some of these names.
var (
	tenants   = weighted{{"acme", 40}, {"blue", 25}, {"corp", 15}, {"delta", 10}, {"echo", 7}, {"fox", 3}}
	models    = []string{"llama-3.1-8b", "llama-3.1-70b", "qwen2.5-32b", "bge-m3", "mistral-7b"}
	endpoints = []string{task.EndpointChat, task.EndpointChat, task.EndpointChat, task.EndpointEmbeddings, task.EndpointChat}
	attemptMS = []float64{400, 2500, 1300, 25, 350} // a typical request to each model
	agents    = []string{"batchyard-cli/1.4", "python-requests/2.32", "OpenAI/Python 1.51", "curl/8.7"}
	instances = processes()
	assigned  = decisions()
)

const (
	deviceCount   = 24
	sourcesEach   = 40
	exampleTask   = "example-1" // of acme, with two attempts
	blockTasks    = 512
	waitingWindow = 3 * time.Hour // half the tasks submitted this recently are still waiting
)

// processes returns the names of the processes of each stage.
func processes() map[string][]string {
	all := map[string][]string{}
	for _, stage := range []string{"router", "batcher", "workers", "callbacks", "api", "audit"} {
		for i := range 3 {
			all[stage] = append(all[stage], fmt.Sprintf("%s@node-%d-%d", stage, i+1, 4000+i*37))
		}
	}
	return all
}

// decisions returns details for task.assigned events.
func decisions() (all [][]byte) {
	for i := range 64 {
		all = append(all, fmt.Appendf(nil, `{"policy":"expected_finish","candidates":%d,"expected_ms":%d,"in_flight":%d}`, 1+i%8, 20*i+7, i%5))
	}
	return all
}

type weighted []struct {
	name   string
	weight int
}

func (w weighted) pick(r *rand.Rand) string {
	n := r.IntN(100)
	for _, e := range w {
		if n -= e.weight; n < 0 {
			return e.name
		}
	}
	return w[0].name
}

// maker generates the tasks of one partition in the order of their submission. It
// works in blocks, and interleaves the events of all tasks in a block.
type maker struct {
	r        *rand.Rand
	now      time.Time
	events   *recorder.Bulk
	results  *recorder.Bulk
	offset   int64
	result   int64
	index    int
	tasks    *rows
	ended    *rows
	hooks    *rows
	block    []task.Event
	order    []int32
	batch    batchOf
	scratch  []byte
	attempts []task.Attempt
	made     int64     // events
	commit   time.Time // when the rows of the block are written
	jobs     map[[2]string]time.Time
	example  bool // also generates exampleTask and the devices' events
}

// batchOf is the batch that the next tasks travel in.
type batchOf struct {
	id     string
	left   int
	detail []byte
}

func (m *maker) hex(n int) string {
	const digits = "0123456789abcdef"
	m.scratch = m.scratch[:0]
	for len(m.scratch) < n {
		v := m.r.Uint64()
		for range 16 {
			m.scratch = append(m.scratch, digits[v&15])
			v >>= 4
		}
	}
	return string(m.scratch[:n])
}

// id returns a version 7 UUID.
func (m *maker) id(at time.Time) string {
	t := fmt.Sprintf("%012x", at.UnixMilli())
	h := m.hex(18)
	return t[:8] + "-" + t[8:] + "-7" + h[:3] + "-a" + h[3:6] + "-" + h[6:]
}

func (m *maker) sum() []byte {
	b := make([]byte, 32)
	for i := 0; i < 32; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], m.r.Uint64())
	}
	return b
}

// ms draws a duration around the typical one, with a long tail.
func (m *maker) ms(typical float64) time.Duration {
	f := 0.5 + m.r.ExpFloat64()*0.6
	if m.r.IntN(100) == 0 {
		f *= 8
	}
	return time.Duration(typical*f*1000) * time.Microsecond
}

func (m *maker) instance(stage string) string {
	all := instances[stage]
	return all[m.r.IntN(len(all))]
}

// life is the history of one task so far.
type life struct {
	t      task.Task
	at     time.Time
	key    int // of its model
	state  task.State
	device string
	number int
	class  task.ErrorClass
	model  string

	assigned, started, updated, finished time.Time
	submitted                            time.Time
	in, out                              int64
	seq                                  int
}

// tell adds an event. If it would be in the future, it returns false, and the task
// stays in its state.
func (m *maker) tell(l *life, a task.Action, actor string) (*task.Event, bool) {
	if l.at.After(m.now) {
		return nil, false
	}
	e := task.Event{
		Time: l.at, Action: a, Outcome: task.OutcomeOK, Tenant: l.t.Tenant, ActorType: task.ActorStage, ActorID: actor,
		ResourceType: "task", ResourceID: l.t.ID, TaskID: l.t.ID, JobID: l.t.JobID, Attempt: l.number, TraceID: l.t.TraceID, Model: l.model,
	}
	m.block = append(m.block, e)
	if info, _ := a.Info(); info.State != "" {
		l.state, l.updated, l.seq = info.State, l.at, task.Sequence(info.State, l.number)
	}
	return &m.block[len(m.block)-1], true
}

// one generates a task that is submitted at the given time.
func (m *maker) one(at time.Time, id string) {
	k := m.r.IntN(len(models))
	l := &life{at: at, key: k, model: models[k], submitted: at, state: task.Pending}
	l.t = task.Task{ID: id, Tenant: tenants.pick(m.r), Model: models[k], Endpoint: endpoints[k], Priority: task.Normal, TraceID: m.hex(32), SubmittedAt: at}
	switch n := m.r.IntN(100); {
	case id == exampleTask:
		l.t.Tenant, l.t.JobID, l.t.Callback = "acme", "nightly-2026-11-21", &task.Callback{URL: "https://hooks.acme.example/done"}
	case n < 30:
		l.t.JobID = fmt.Sprintf("job-%s-%d", at.Format("0102"), n)
	case n < 35:
		l.t.Callback = &task.Callback{URL: "https://hooks." + l.t.Tenant + ".example/done"}
	}
	if m.r.IntN(10) == 0 {
		l.t.Deadline = at.Add(10 * time.Minute)
	}
	stop := m.walk(l)
	m.row(l)
	if !stop && l.t.Callback != nil {
		m.callback(l)
	}
}

// walk generates the events of a task until it ends; stopped means that it has not
// ended yet.
func (m *maker) walk(l *life) (stopped bool) {
	example := l.t.ID == exampleTask
	e, _ := m.tell(l, task.TaskAccepted, l.t.Tenant)
	source := m.r.IntN(sourcesEach)
	e.ActorType, e.UserAgent, e.InputSHA256, e.InputSize = task.ActorUser, agents[source%len(agents)], m.sum(), int64(200+m.r.IntN(3000))
	e.SourceAddr = fmt.Sprintf("10.%d.0.%d:%d", len(l.t.Tenant), source+1, 32768+m.r.IntN(28000))
	if m.r.IntN(8) == 0 {
		e.SourceAddr = fmt.Sprintf("kafka:tasks.normal/%d@%d", m.r.IntN(8), m.offset)
	}
	l.at = l.at.Add(m.ms(2))
	if e, ok := m.tell(l, task.TaskQueued, m.instance("router")); ok {
		e.SourceAddr = fmt.Sprintf("kafka:tasks.normal/%d@%d", m.r.IntN(8), m.offset)
	}
	lost := m.r.IntN(20_000) // a few tasks get stuck: 0, 1 and 2 say where
	if m.now.Sub(l.submitted) < waitingWindow && m.r.IntN(2) == 0 || lost == 0 {
		return true
	}
	fate := m.r.IntN(1000)
	for {
		l.number++
		if stop := m.attempt(l, lost); stop {
			return true
		}
		failed := fate < 5 || m.r.IntN(1000) < 30 || example && l.number == 1
		if !failed {
			break
		}
		l.class = []task.ErrorClass{task.ClassDevice, task.ClassTimeout, task.ClassConnect, task.ClassThrottled}[m.r.IntN(4)]
		e, ok := m.tell(l, task.AttemptFailed, m.instance("workers"))
		if !ok {
			return true
		}
		e.DeviceID, e.BatchID, e.Outcome, e.ErrorClass, e.Duration = l.device, m.batch.id, task.OutcomeFailed, l.class, l.at.Sub(l.started)
		e.Detail = []byte(`{"message":"the device answered with status 503","status":503}`)
		if l.number >= 4 {
			return m.finish(l, task.TaskFailed, task.Failed)
		}
		if e, ok = m.tell(l, task.TaskRequeued, m.instance("workers")); !ok {
			return true
		}
		e.DeviceID, e.ErrorClass = l.device, l.class
		e.Detail = fmt.Appendf(nil, `{"after_ms":%d,"reason":"%s","without_device":true}`, 50*l.number, l.class)
		l.at = l.at.Add(m.ms(80))
	}
	switch {
	case fate >= 5 && fate < 8 && !example:
		return m.finish(l, task.TaskExpired, task.Expired)
	case fate >= 8 && fate < 12 && !example:
		if e, ok := m.tell(l, task.TaskCancelRequested, l.t.Tenant); ok {
			e.ActorType, e.SourceAddr, e.UserAgent = task.ActorUser, fmt.Sprintf("10.%d.0.1:40000", len(l.t.Tenant)), agents[0]
		}
		return m.finish(l, task.TaskCancelled, task.Cancelled)
	}
	e, ok := m.tell(l, task.AttemptSucceeded, m.instance("workers"))
	if !ok {
		return true
	}
	l.in, l.out = int64(50+m.r.IntN(900)), int64(20+m.r.IntN(700))
	e.DeviceID, e.BatchID, e.Duration, e.InputTokens, e.OutputTokens = l.device, m.batch.id, l.at.Sub(l.started), l.in, l.out
	e.OutputSize, e.OutputSHA256, e.Detail = int64(len(answerOutput)), answerSum[:], []byte(`{"status":200}`)
	return m.finish(l, task.TaskSucceeded, task.Success)
}

// attempt assigns a task to a device and starts its request there.
func (m *maker) attempt(l *life, lost int) (stopped bool) {
	waited := m.ms(6)
	l.at = l.at.Add(waited)
	e, ok := m.tell(l, task.TaskAssigned, m.instance("router"))
	if !ok {
		return true
	}
	// Each device serves two models.
	l.device = fmt.Sprintf("gpu-%d", 1+(l.key*deviceCount/len(models)+m.r.IntN(deviceCount*2/len(models)))%deviceCount)
	l.assigned = l.at
	e.DeviceID, e.Duration, e.Detail = l.device, waited, assigned[m.r.IntN(len(assigned))]
	if lost == 1 {
		return true
	}
	l.at = l.at.Add(m.ms(3))
	if e, ok = m.tell(l, task.BatchClosed, m.instance("batcher")); !ok {
		return true
	}
	if m.batch.left == 0 {
		m.nextBatch()
	}
	m.batch.left--
	e.DeviceID, e.BatchID, e.Duration, e.Detail, e.ResourceType, e.ResourceID = l.device, m.batch.id, l.at.Sub(l.assigned), m.batch.detail, "batch", m.batch.id
	l.at = l.at.Add(m.ms(4))
	if e, ok = m.tell(l, task.AttemptStarted, m.instance("workers")); !ok {
		return true
	}
	e.DeviceID, e.BatchID = l.device, m.batch.id
	l.started = l.at
	l.at = l.at.Add(m.ms(attemptMS[l.key]))
	return lost == 2
}

func (m *maker) nextBatch() {
	reason := []string{"idle", "idle", "idle", "wait", "count"}[m.r.IntN(5)]
	n := 1 + m.r.IntN(12)
	if reason == "count" {
		n = 32
	}
	m.batch = batchOf{m.hex(32), n, fmt.Appendf(nil, `{"bytes":%d,"reason":"%s","tasks":%d}`, n*(400+m.r.IntN(800)), reason, n)}
}

// finish ends a task with its last event and its result.
func (m *maker) finish(l *life, a task.Action, s task.State) (stopped bool) {
	l.at = l.at.Add(200 * time.Microsecond)
	e, ok := m.tell(l, a, m.instance("workers"))
	if !ok {
		return true
	}
	e.DeviceID, e.BatchID, e.Duration, e.InputTokens, e.OutputTokens = l.device, m.batch.id, l.at.Sub(l.submitted), l.in, l.out
	if s != task.Success {
		e.Outcome, e.ErrorClass = task.OutcomeFailed, l.class
	} else {
		l.class = ""
	}
	l.state, l.finished, l.updated, l.seq = s, l.at, l.at, task.TerminalSequence
	m.attempts = append(m.attempts[:0], task.Attempt{Number: l.number})
	res := task.Result{TaskID: l.t.ID, Tenant: l.t.Tenant, State: s, Model: l.model, Endpoint: l.t.Endpoint, Attempts: m.attempts,
		Usage: task.Usage{InputTokens: l.in, OutputTokens: l.out}, SubmittedAt: l.submitted, AssignedAt: l.assigned, StartedAt: l.started, FinishedAt: l.finished}
	m.events.AddResult(&res)
	m.answer(l)
	if again := l.at.Add(m.ms(20)); m.r.IntN(1000) == 0 && !again.After(m.now) { // a second result, as after a crash, with its event
		second := *e
		second.Time, second.ActorID = again, m.instance("workers")
		m.block = append(m.block, second)
		d := second
		d.Action, d.Outcome, d.ResourceType, d.ActorID, d.Duration = task.ResultDuplicate, task.OutcomeRefused, "result", m.instance("audit"), 0
		d.Detail = []byte(`{"finished_at":"` + again.Format(time.RFC3339Nano) + `","state":"` + string(s) + `"}`)
		m.results.Advance(m.result + 1)
		m.results.Add(&d, m.result, 0, d.Time.Add(20*time.Millisecond))
		m.result++
		m.made++
	}
	return false
}

// mix adds the events of a block in the order of their times, sixteen per record.
func (m *maker) mix() {
	const perRecord = 16
	m.events.Advance(m.offset + int64(m.index+len(m.block)+perRecord-1)/perRecord)
	m.order = m.order[:0]
	for i := range m.block {
		m.order = append(m.order, int32(i)) //nolint:gosec // a few thousand
	}
	slices.SortFunc(m.order, func(a, b int32) int { return m.block[a].Time.Compare(m.block[b].Time) })
	for n, i := range m.order {
		e := &m.block[i]
		at := e.Time.Add(20 * time.Millisecond)
		if n == 0 {
			at = m.commit // it has the digests of the rows of other tables
		}
		m.events.Add(e, m.offset, m.index, at)
		if m.index++; m.index == perRecord {
			m.index, m.offset = 0, m.offset+1
		}
	}
	m.made += int64(len(m.block))
	m.block = m.block[:0]
}
