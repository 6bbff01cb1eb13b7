package routesim

import (
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// machine is a device as it is, and the workers' side of it: the queue in front
// of its slots, and what they learn from how its requests end.
type machine struct {
	spec    *DeviceSpec
	pool    string
	models  []string
	mode    Mode
	queue   fifo
	running int  // requests that the workers count
	hung    int  // requests that they have given up, which still run
	busy    int  // slots that work
	inner   fifo // requests beyond the slots: those given up hold theirs
	telling bool // the routers will soon ask what is in use of its pool

	estimator *device.Estimator
	ejector   *device.Ejector
	slots     *device.Concurrency
	budget    *workers.Budget
	hopMS     float64

	out     *DeviceOutcome
	since   int64 // busy slot-time is counted up to here
	changed int64 // when it changed its ways; -1: never
	unwell  int64 // until then it may be let alone, or get its work back slowly
}

// known is what the virtual Redis holds of devices.
type known struct {
	devices []device.Device
	rates   map[device.RateKey]device.Rate
	healths map[string]device.Health
}

func (s *sim) addDevices() {
	s.redis = known{rates: map[device.RateKey]device.Rate{}, healths: map[string]device.Health{}}
	s.told = map[string]int{}
	s.out.Devices = make([]DeviceOutcome, len(s.setup.Fleet))
	for i := range s.setup.Fleet {
		d := &s.setup.Fleet[i]
		s.out.Devices[i].ID = d.ID
		m := &machine{
			spec: d, pool: device.Pool(d.ID, device.ClassEach), models: d.Models, out: &s.out.Devices[i], changed: -1,
			estimator: device.NewEstimator(device.EstimatorConfig{}),
			ejector: device.NewEjector(device.EjectorConfig{
				Faults: s.wc.BreakerFails, Ratio: s.wc.BreakerRatio, Window: s.wc.BreakerWindow, Open: s.wc.BreakerOpen, OpenMax: s.wc.BreakerOpenMax,
				Hang: s.wc.HangFactor, HangMin: s.wc.HangMin, Jitter: s.random.pauses.Float64,
			}),
			slots: device.NewConcurrency(d.Slots), budget: workers.NewBudget(s.wc.RetryBudget),
		}
		if len(m.models) == 0 {
			m.models = []string{Model}
		}
		if s.setup.Learned {
			for _, model := range m.models {
				k := device.RateKey{Device: d.ID, Model: model}
				for range 32 {
					m.estimator.Learn(k, d.Service, 1, epoch)
				}
			}
			m.estimator.Take(s.redis.rates)
		}
		s.machs = append(s.machs, m)
		s.byID[d.ID], s.byPool[m.pool] = int32(i), int32(i)
		s.redis.devices = append(s.redis.devices, device.Device{})
		s.beat(m)
		s.after(s.random.phases.Int64N(int64(beatEvery)), event{kind: evBeat, i: int32(i)})
	}
}

// beat sends a device's heartbeat: its figures as they are at this moment. The
// weight is the true rate of a slot: weighted policies, which multiply it by the
// slots, are told what an operator who measured well would write.
func (s *sim) beat(m *machine) {
	busy := float64(m.busy) / float64(m.spec.Slots)
	now := s.time()
	i := s.byID[m.spec.ID]
	joined := s.redis.devices[i].JoinedAt
	if joined.IsZero() {
		joined = now
	}
	s.redis.devices[i] = device.Device{
		ID: m.spec.ID, URL: "http://" + m.spec.ID, Models: m.models, Tags: m.spec.Tags, Slots: m.spec.Slots,
		CPU: busy, Mem: 0.2 + 0.6*busy, IO: 0.1 * busy, LatencyMS: seconds(s.hop) * 1000 / 2,
		Queue: m.queue.len() + m.running + m.hung - m.busy, InFlight: m.busy, Weight: 1 / m.spec.Service.Seconds(), At: now, JoinedAt: joined,
	}
}

// breaks lets a device change its ways.
func (s *sim) breaks(f Fault) {
	m := s.machs[s.byID[f.Device]]
	m.count(s)
	m.mode, m.changed = f.Mode, s.now
	s.dispatch(m)
}

// reach puts a task into the queue in front of its device.
func (s *sim) reach(j *job) {
	m := s.machs[j.device]
	if s.now < j.chosen+s.hop {
		s.fail("causality: task %s is at %s before its hop has passed", j.task.ID, m.spec.ID)
	}
	j.where, j.free = atDevice, m.queue.len() == 0 && m.running < min(m.spec.Slots, m.slots.Slots())
	m.queue.push(j)
	s.dispatch(m)
}

// dispatch begins requests while the device has slots and takes them. Nothing
// waits at a device that is let alone: it goes elsewhere.
func (s *sim) dispatch(m *machine) {
	for m.queue.len() > 0 && s.bad == nil {
		if !m.ejector.Allow(s.time()) {
			for m.queue.len() > 0 {
				s.settle(m, m.queue.pop(), &workers.Failure{Class: task.ClassBreakerOpen})
			}
			return
		}
		if m.running >= min(m.spec.Slots, m.slots.Slots()) {
			return
		}
		j := m.queue.pop()
		if !m.ejector.Start(s.time()) {
			s.settle(m, j, &workers.Failure{Class: task.ClassBreakerOpen})
			continue
		}
		s.begin(m, j)
	}
}

// begin begins a request.
func (s *sim) begin(m *machine, j *job) {
	if j.where != atDevice || s.machs[j.device] != m {
		s.fail("conservation: task %s is begun on %s and is not there", j.task.ID, m.spec.ID)
		return
	}
	if m.running++; m.running > m.spec.Slots {
		s.fail("slots: %d requests run on the %d slots of %s", m.running, m.spec.Slots, m.spec.ID)
	}
	j.where, j.started = running, s.now
	j.here++
	j.gen++
	if j.free && j.here == 1 {
		hop := seconds(s.now-j.chosen) * 1000
		if m.hopMS == 0 {
			m.hopMS = hop
		}
		m.hopMS += 0.1 * (hop - m.hopMS)
	}
	if !j.tried {
		j.tried = true
		if j.arrived >= s.from && j.arrived < s.to {
			s.out.Streams[j.stream].Wait.Add(seconds(s.now - j.arrived))
		}
	}
	s.out.Attempts++
	m.out.Attempts++
	if s.faultAt >= 0 && s.now > s.faultAt+int64(time.Second) {
		s.out.Late++
		if m.changed >= 0 && s.now > m.changed+int64(time.Second) && m.mode != Well {
			m.out.After++
		}
	}
	m.budget.Earn()
	j.serving, j.hung = false, false
	if m.busy < m.spec.Slots {
		s.serve(m, j)
		return
	}
	m.inner.push(j)
	s.after(int64(s.wc.RequestTimeout), event{kind: evEnd, job: j, gen: j.gen})
}

// serve lets a request have a slot of the device.
func (s *sim) serve(m *machine, j *job) {
	m.count(s)
	if m.busy++; m.busy > m.spec.Slots {
		s.fail("slots: %d of the %d slots of %s work", m.busy, m.spec.Slots, m.spec.ID)
	}
	j.serving = true
	j.gen++ // its end is another than it seemed
	takes, most := s.wc.RequestTimeout, s.wc.RequestTimeout-time.Duration(s.now-j.started)
	switch m.mode {
	case Well:
		takes = time.Duration(j.work * float64(m.spec.Service))
	case Failing:
		takes = failsIn
	case Hanging:
	}
	s.after(int64(min(takes, most)), event{kind: evEnd, job: j, gen: j.gen})
}

// leave frees the slot of a request that ended, for one that waits inside.
func (s *sim) leave(m *machine, j *job) {
	if j.hung {
		m.hung--
	} else {
		m.running--
	}
	if !j.serving {
		return
	}
	m.count(s)
	m.busy--
	j.serving = false
	for m.inner.len() > 0 {
		if k := m.inner.pop(); k.where == running && !k.serving && k.device == j.device {
			s.serve(m, k)
			return
		}
	}
}

// giveUp frees the slots, in the workers' books, of what runs on a device that
// hangs.
func (s *sim) giveUp(m *machine) {
	for _, j := range s.jobs[s.oldest:] {
		if j != nil && j.where == running && !j.hung && s.machs[j.device] == m {
			j.hung = true
			m.hung++
			m.running--
		}
	}
}

// count adds the slot-time since the last change to what the device did.
func (m *machine) count(s *sim) {
	from, to := max(m.since, s.from), min(s.now, s.to)
	m.since = s.now
	if to <= from || m.mode != Well {
		return
	}
	busy := float64(m.busy) * seconds(to-from)
	m.out.Busy += busy
	s.out.Busy += busy / m.spec.Service.Seconds()
}

// requestEnds takes the end of a request, as the worker does.
func (s *sim) requestEnds(j *job) {
	m := s.machs[j.device]
	if j.where != running {
		s.fail("conservation: a request of task %s ends that does not run", j.task.ID)
		return
	}
	s.leave(m, j)
	now := s.time()
	took := time.Duration(s.now - j.started)
	var f *workers.Failure
	outcome := device.OK
	switch {
	case took >= s.wc.RequestTimeout:
		f, outcome = &workers.Failure{Class: task.ClassTimeout}, device.TimedOut
	case m.mode == Failing:
		f, outcome = &workers.Failure{Class: task.ClassDevice, Status: 500}, device.Fault
	}
	m.ejector.Ended(now, outcome, took)
	m.slots.Ended(now, outcome, took)
	if f == nil {
		m.estimator.Learn(device.RateKey{Device: m.spec.ID, Model: j.task.Model}, took, 1, now)
		s.giveBack(j)
		s.end(j, true)
	} else {
		s.settle(m, j, f)
	}
	if m.ejector.Changed() { // told at once
		s.publish(m)
	}
	s.dispatch(m)
}

// settle does what the workers do after a failure, by their own rule.
func (s *sim) settle(m *machine, j *job, f *workers.Failure) {
	t := j.task
	now := s.time()
	var attempts []task.Attempt
	var exclude []string
	if t.Progress != nil {
		attempts, exclude = t.Progress.Attempts, t.Progress.Exclude
	}
	if j.where == running {
		attempts = append(attempts[:len(attempts):len(attempts)], task.Attempt{
			Number: t.Tried() + 1, Model: t.Model, Device: m.spec.ID, Class: f.Class, Status: f.Status,
			At: epoch.Add(time.Duration(j.started)), Duration: (s.now - j.started) / int64(time.Millisecond),
		})
	}
	d := workers.Decide(s.wc, workers.Situation{Task: t, Attempts: attempts, Failure: *f, LocalAttempts: j.here}, m.budget, now)
	after := int64(d.After)
	if after > 0 && !d.OverBudget && f.RetryAfter == 0 { // its jitter is to come from the run's seed
		counted := 0
		for _, a := range attempts {
			if workers.Counts(a.Class) {
				counted++
			}
		}
		after = s.pause(counted)
	}
	c := *t
	c.Progress = &task.Progress{Attempts: attempts, Exclude: exclude, Requeues: t.Requeues()}
	j.task = &c
	j.gen++
	switch d.Action {
	case workers.RetryHere:
		j.where = pausing
		s.after(after, event{kind: evAgain, job: j, gen: j.gen})
	case workers.RetryElsewhere, workers.Degrade:
		c.Progress.Requeues++
		if after > 0 {
			c.Progress.NotBefore = now.Add(time.Duration(after))
		}
		if d.Exclude {
			c.Progress.Exclude = append(exclude[:len(exclude):len(exclude)], m.spec.ID)
		}
		s.giveBack(j)
		j.where, j.source = inLog, topicOf(c.Priority)
		s.after(s.back, event{kind: evLog, job: j})
	case workers.Fail, workers.Expire:
		s.giveBack(j)
		s.end(j, false)
	}
}

// pause is the workers' backoff after the n-th failure, its jitter from the run's
// own random numbers.
func (s *sim) pause(n int) int64 {
	d := float64(s.wc.BackoffMin)
	for range max(1, n) - 1 {
		d = min(2*d, float64(s.wc.BackoffMax))
	}
	return int64(min(d*(0.5+s.random.pauses.Float64()), float64(s.wc.BackoffMax)))
}

// giveBack gives a credit back; the routers will hear of it.
func (s *sim) giveBack(j *job) {
	if s.acct.leases[j.lease] == nil {
		s.fail("credits: the lease of task %s is gone before the task has ended", j.task.ID)
	}
	s.tellFreed(s.acct.release(s.now/int64(time.Millisecond), j.lease, 1))
	j.lease, j.device = "", -1
}

// tellFreed lets the routers hear that pools have room. It takes half of the time
// until Redis is asked how much; what is freed until then is in the same answer.
func (s *sim) tellFreed(pools []string) {
	for _, p := range pools {
		if i, ok := s.byPool[p]; ok && !s.machs[i].telling {
			s.machs[i].telling = true
			s.after(s.news/2, event{kind: evAsk, i: i})
		}
	}
}

// report publishes what the workers learned since the last time, and finds
// devices that hang.
func (s *sim) report() {
	for _, m := range s.machs {
		m.ejector.Check(s.time(), m.expected(s))
		s.publish(m)
		s.dispatch(m) // nothing waits at a device that hangs
	}
}

func (s *sim) publish(m *machine) {
	now := s.time()
	for _, c := range m.ejector.Changes() {
		if c.Hung {
			s.giveUp(m)
		}
	}
	m.estimator.Take(s.redis.rates)
	h := m.ejector.Health(now)
	h.Slots, h.HopMS = m.slots.Below(), m.hopMS
	s.redis.healths[m.spec.ID] = h
	if h.State != device.StateClosed {
		m.unwell = s.now + int64(time.Minute)
	}
}

// expected is what a request usually takes; one of a model that was not heard of
// here is as on the slowest of the others.
func (m *machine) expected(s *sim) time.Duration {
	var most time.Duration
	for _, model := range m.models {
		if d, ok := m.estimator.Service(device.RateKey{Device: m.spec.ID, Model: model}); ok {
			most = max(most, d)
		}
	}
	if most > 0 {
		return most
	}
	for _, r := range s.redis.rates {
		most = max(most, time.Duration(r.ServiceMS*float64(time.Millisecond)))
	}
	return most
}

// renew keeps the leases of all tasks that hold a credit, as the keepers do.
func (s *sim) renew() {
	s.renewIDs = s.renewIDs[:0]
	for s.oldest < len(s.jobs) && s.jobs[s.oldest] == nil {
		s.oldest++
	}
	for _, j := range s.jobs[s.oldest:] {
		if j != nil && j.lease != "" {
			s.renewIDs = append(s.renewIDs, j.lease)
		}
	}
	lost, freed := s.acct.renew(s.now/int64(time.Millisecond), s.renewIDs)
	if lost > 0 {
		s.fail("credits: %d leases are gone whose tasks have not ended", lost)
	}
	s.tellFreed(freed)
}
