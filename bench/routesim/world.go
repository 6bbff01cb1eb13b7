package routesim

import (
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/device/learn"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
	"github.com/batchyard/batchyard/workers/verdict"
)

// machine is a device, together with the workers' view of it: the queue in front of
// its slots, and what they learn from the requests.
type machine struct {
	spec    *DeviceSpec
	pool    string
	models  []string
	mode    Mode
	queue   fifo
	running int  // requests in flight, as the workers count them
	hung    int  // requests that the workers abandoned but that still run
	busy    int  // slots in use
	inner   fifo // requests waiting on the device for slots held by abandoned ones

	askPending bool // the routers are about to query the credits in use of its pool

	estimator *learn.Estimator
	ejector   *learn.Breaker
	slots     *learn.Concurrency
	budget    *workers.Budget
	hopMS     float64

	out     *DeviceOutcome
	since   int64 // busy slot time is counted up to here
	changed int64 // time of its latest fault; -1 if none

	recoversAt int64 // until this time, an open breaker may keep work away from it
}

// known is what the virtual Redis holds about devices.
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
			spec: d, pool: device.Pool(d.ID, device.ClassSingle), models: d.Models, out: &s.out.Devices[i], changed: -1,
			estimator: learn.NewEstimator(learn.EstimatorConfig{}),
			ejector: learn.NewBreaker(learn.BreakerConfig{
				Faults: s.wc.BreakerFails, Ratio: s.wc.BreakerRatio, Window: s.wc.BreakerWindow, Open: s.wc.BreakerOpen, MaxOpen: s.wc.BreakerOpenMax,
				HangFactor: s.wc.HangFactor, MinHang: s.wc.HangMin, Jitter: s.random.pauses.Float64,
			}),
			slots: learn.NewConcurrency(d.Slots), budget: workers.NewBudget(s.wc.RetryBudget),
		}
		if len(m.models) == 0 {
			m.models = []string{Model}
		}
		if s.setup.Learned {
			for _, model := range m.models {
				k := device.RateKey{DeviceID: d.ID, Model: model}
				for range 32 {
					m.estimator.Learn(k, d.Service, 1, epoch)
				}
			}
			m.estimator.Take(s.redis.rates)
		}
		s.machines = append(s.machines, m)
		s.byID[d.ID], s.byPool[m.pool] = int32(i), int32(i)
		s.redis.devices = append(s.redis.devices, device.Device{})
		s.beat(m)
		s.after(s.random.phases.Int64N(int64(beatEvery)), event{kind: evHeartbeat, i: int32(i)})
	}
}

// beat sends a heartbeat with the current figures of a device. The weight is the
// true rate of a slot, as an operator would set it after careful measurements;
// weighted policies multiply it by the number of slots.
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

// setMode applies a fault.
func (s *sim) setMode(f Fault) {
	m := s.machines[s.byID[f.Device]]
	m.count(s)
	m.mode, m.changed = f.Mode, s.now
	s.dispatch(m)
}

// reach puts a task into the queue in front of its device.
func (s *sim) reach(j *job) {
	m := s.machines[j.device]
	if s.now < j.chosen+s.hop {
		s.fail("causality: task %s reached %s before the dispatch latency has passed", j.task.ID, m.spec.ID)
	}
	j.where, j.free = atDevice, m.queue.len() == 0 && m.running < min(m.spec.Slots, m.slots.Slots())
	m.queue.push(j)
	s.dispatch(m)
}

// dispatch starts requests while the device has free slots. If its breaker is open,
// all waiting tasks go elsewhere.
func (s *sim) dispatch(m *machine) {
	for m.queue.len() > 0 && s.bad == nil {
		if !m.ejector.Allow(s.time()) {
			for m.queue.len() > 0 {
				s.settle(m, m.queue.pop(), verdict.New(verdict.BreakerOpen, m.spec.ID, ""))
			}
			return
		}
		if m.running >= min(m.spec.Slots, m.slots.Slots()) {
			return
		}
		j := m.queue.pop()
		if !m.ejector.Start(s.time()) {
			s.settle(m, j, verdict.New(verdict.BreakerOpen, m.spec.ID, ""))
			continue
		}
		s.begin(m, j)
	}
}

// begin starts a request.
func (s *sim) begin(m *machine, j *job) {
	if j.where != atDevice || s.machines[j.device] != m {
		s.fail("conservation: task %s starts on %s but is not there", j.task.ID, m.spec.ID)
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
		if m.changed >= 0 && s.now > m.changed+int64(time.Second) && m.mode != Healthy {
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

// serve gives a request a slot of the device.
func (s *sim) serve(m *machine, j *job) {
	m.count(s)
	if m.busy++; m.busy > m.spec.Slots {
		s.fail("slots: %d of the %d slots of %s are busy", m.busy, m.spec.Slots, m.spec.ID)
	}
	j.serving = true
	j.gen++ // replaces the evEnd that was scheduled before it had a slot
	takes, most := s.wc.RequestTimeout, s.wc.RequestTimeout-time.Duration(s.now-j.started)
	switch m.mode {
	case Healthy:
		takes = time.Duration(j.work * float64(m.spec.Service))
	case Failing:
		takes = failsIn
	case Hanging:
	}
	s.after(int64(min(takes, most)), event{kind: evEnd, job: j, gen: j.gen})
}

// leave frees the slot of a request that ended, and gives it to one waiting on the
// device.
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

// abandonRequests gives up the requests on a hanging device: the workers no longer
// count them as in flight.
func (s *sim) abandonRequests(m *machine) {
	for _, j := range s.jobs[s.oldest:] {
		if j != nil && j.where == running && !j.hung && s.machines[j.device] == m {
			j.hung = true
			m.hung++
			m.running--
		}
	}
}

// count adds the busy slot time since the last change.
func (m *machine) count(s *sim) {
	from, to := max(m.since, s.from), min(s.now, s.to)
	m.since = s.now
	if to <= from || m.mode != Healthy {
		return
	}
	busy := float64(m.busy) * seconds(to-from)
	m.out.Busy += busy
	s.out.Busy += busy / m.spec.Service.Seconds()
}

// requestEnds handles the end of a request, as the workers do.
func (s *sim) requestEnds(j *job) {
	m := s.machines[j.device]
	if j.where != running {
		s.fail("conservation: a request of task %s ends but is not running", j.task.ID)
		return
	}
	s.leave(m, j)
	now := s.time()
	took := time.Duration(s.now - j.started)
	var f *workers.Failure
	outcome := learn.OK
	switch {
	case took >= s.wc.RequestTimeout:
		f, outcome = verdict.New(verdict.NoFirstByte, m.spec.ID, ""), learn.TimedOut
	case m.mode == Failing:
		f, outcome = verdict.New(verdict.ServerError, m.spec.ID, ""), learn.Fault
	}
	m.ejector.Ended(now, outcome, took)
	m.slots.Ended(now, outcome, took)
	if f == nil {
		m.estimator.Learn(device.RateKey{DeviceID: m.spec.ID, Model: j.task.Model}, took, 1, now)
		s.returnCredit(j)
		s.end(j, succeeded)
	} else {
		s.settle(m, j, f)
	}
	if m.ejector.Changed() { // workers publish this immediately
		s.publish(m)
	}
	s.dispatch(m)
}

// settle handles a failure, using the rule of the workers.
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
			Number: t.Tried() + 1, Model: t.Model, DeviceID: m.spec.ID, Class: f.Class, Status: f.Status,
			At: epoch.Add(time.Duration(j.started)), Duration: (s.now - j.started) / int64(time.Millisecond),
		})
	}
	d := workers.Decide(s.wc, workers.Situation{Task: t, Attempts: attempts, Failure: *f, LocalAttempts: j.here}, m.budget, now)
	after := int64(d.After)
	if after > 0 && !d.OverBudget && f.Pause == 0 { // take the jitter from the run's own random numbers
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
		j.where = backingOff
		s.after(after, event{kind: evRetryHere, job: j, gen: j.gen})
	case workers.RetryElsewhere, workers.Degrade:
		c.Progress.Requeues++
		if after > 0 {
			c.Progress.NotBefore = now.Add(time.Duration(after))
		}
		if d.Exclude {
			c.Progress.Exclude = append(exclude[:len(exclude):len(exclude)], m.spec.ID)
		}
		s.returnCredit(j)
		j.where, j.source = inLog, topicOf(c.Priority)
		s.after(s.back, event{kind: evLog, job: j})
	case workers.Fail, workers.Expire:
		s.returnCredit(j)
		s.end(j, failed)
	}
}

// pause is the workers' backoff after the n-th failure, with jitter from the run's
// own random numbers.
func (s *sim) pause(n int) int64 {
	d := float64(s.wc.BackoffMin)
	for range max(1, n) - 1 {
		d = min(2*d, float64(s.wc.BackoffMax))
	}
	return int64(min(d*(0.5+s.random.pauses.Float64()), float64(s.wc.BackoffMax)))
}

// returnCredit returns a task's credit and announces it to the routers.
func (s *sim) returnCredit(j *job) {
	if s.acct.leases[j.lease] == nil {
		s.fail("credits: the lease of task %s expired before the task ended", j.task.ID)
	}
	s.announceFreed(s.acct.release(s.now/int64(time.Millisecond), j.lease, 1))
	j.lease, j.device = "", -1
}

// announceFreed tells the routers that pools have room. They query Redis after half
// of the delay, so the answer includes anything freed until then.
func (s *sim) announceFreed(pools []string) {
	for _, p := range pools {
		if i, ok := s.byPool[p]; ok && !s.machines[i].askPending {
			s.machines[i].askPending = true
			s.after(s.news/2, event{kind: evAsk, i: i})
		}
	}
}

// report publishes what the workers have learned, and detects hanging devices.
func (s *sim) report() {
	for _, m := range s.machines {
		m.ejector.CheckHang(s.time(), m.expected(s))
		s.publish(m)
		s.dispatch(m) // moves waiting tasks away from a device that hangs
	}
}

func (s *sim) publish(m *machine) {
	now := s.time()
	for _, c := range m.ejector.Changes() {
		if c.Hung {
			s.abandonRequests(m)
		}
	}
	m.estimator.Take(s.redis.rates)
	h := m.ejector.Health(now)
	h.Slots, h.DispatchMS = m.slots.Below(), m.hopMS
	s.redis.healths[m.spec.ID] = h
	if h.State != device.StateClosed {
		m.recoversAt = s.now + int64(time.Minute)
	}
}

// expected returns how long a request usually takes. For a model with no estimate on
// this device, that is the time on the slowest of the others.
func (m *machine) expected(s *sim) time.Duration {
	var most time.Duration
	for _, model := range m.models {
		if d, ok := m.estimator.Service(device.RateKey{DeviceID: m.spec.ID, Model: model}); ok {
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

// renew extends the leases of all tasks that hold a credit, as the stages do.
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
		s.fail("credits: %d leases expired before their tasks ended", lost)
	}
	s.announceFreed(freed)
}
