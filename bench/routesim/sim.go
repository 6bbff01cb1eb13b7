package routesim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/device/store"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// epoch is the start of virtual time.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// maxDrain, plus four times the time until the end of the measurement, is the
// longest that the remaining tasks may take after it. A run that needs more has
// lost a task.
const maxDrain = time.Hour

// place is where a task is.
type place uint8

const (
	inLog      place = iota // in the log: the window is full, or it is being requeued
	inWindow                // in a router's window
	aside                   // read by the router, and set aside
	onTheWay                // assigned but not yet at its device
	atDevice                // in the queue of its device
	running                 // its request is in flight
	backingOff              // waiting to be retried on the same device
	ended
)

// job is a task, with what only the simulation knows about it.
type job struct {
	task    *task.Task
	work    float64
	arrived int64
	chosen  int64 // time of the latest assignment
	started int64 // time of the latest request
	seen    bool  // has been assigned before
	tried   bool  // has had a request before
	stream  int32
	router  int32
	device  int32
	gen     uint32 // of its request
	here    int    // requests on this device since the assignment
	free    bool   // found a free slot when it reached its device
	serving bool   // its request has a slot
	hung    bool   // the workers have abandoned its request
	where   place
	source  string
	lease   string
}

// sim is one run.
type sim struct {
	setup *Setup
	rc    router.Config
	wc    workers.Config
	hop   int64
	news  int64 // delay until routers notice a returned credit
	back  int64 // delay until a requeued task is read again

	now      int64
	events   heap4
	jobs     []*job // by the number in the task's id; nil once ended
	oldest   int    // index in jobs: all tasks before it have ended
	live     int
	nodes    []*node
	machines []*machine
	byID     map[string]int32
	byPool   map[string]int32
	acct     *account
	redis    known
	feeds    []feed

	random struct{ order, split, pauses, phases, sessions *rand.Rand } // see newRNG

	from, to int64          // the measured time
	ending   bool           // no more arrivals
	faultAt  int64          // time of the first fault
	told     map[string]int // argument of Core.Freed, reused to save allocations
	out      *Outcome
	bad      error // the first violated invariant
	renewIDs []string
	pending  int // streams that have more arrivals
}

// feed is a stream in a run.
type feed struct {
	spec   *Stream
	next   func() (Arrival, bool)
	source string // topic of its tasks
}

// Run simulates a setup. It returns an error if the setup is invalid or the run
// violates an invariant.
func Run(ctx context.Context, setup Setup) (*Outcome, error) {
	s, err := newSim(&setup)
	if err != nil {
		return nil, err
	}
	return s.run(ctx)
}

func newSim(setup *Setup) (*sim, error) {
	if err := setup.Check(); err != nil {
		return nil, err
	}
	s := &sim{setup: setup, byID: map[string]int32{}, byPool: map[string]int32{}}
	var dc store.Config
	var err error
	if s.rc, s.wc, dc, err = setup.configs(); err != nil {
		return nil, err
	}
	s.hop = int64(setup.Hop)
	s.news, s.back = s.hop/4, s.hop/2
	s.from = int64(setup.Warmup)
	s.to = s.from + int64(setup.Duration)
	r := &s.random
	r.order, r.split = newRNG(setup.Seed, rngOrder), newRNG(setup.Seed, rngSplit)
	r.pauses, r.phases = newRNG(setup.Seed, rngPauses), newRNG(setup.Seed, rngPhases)
	r.sessions = newRNG(setup.Seed, rngSessions)
	s.acct = newAccount(dc.LeaseTTL.Milliseconds())
	s.out = &Outcome{Measured: setup.Duration.Seconds(), Capacity: setup.Fleet.Capacity()}
	s.addDevices()
	if err := s.addRouters(); err != nil {
		return nil, err
	}
	s.addStreams()
	s.addFaults()
	s.after(int64(s.wc.ReportInterval), event{kind: evReport})
	s.after(int64(dc.LeaseTTL/3), event{kind: evRenew, i: int32(dc.LeaseTTL.Milliseconds() / 3)})
	s.after(s.from, event{kind: evMeasure, i: 1})
	s.after(s.to, event{kind: evMeasure})
	return s, nil
}

func (s *sim) addStreams() {
	s.out.Streams = make([]StreamOutcome, len(s.setup.Streams))
	for i := range s.setup.Streams {
		spec := &s.setup.Streams[i]
		s.out.Streams[i].Name = spec.Name
		f := feed{spec: spec, next: spec.Begin(s.setup.Seed*1_000_003 + uint64(i)), source: topicOf(spec.Priority)}
		s.feeds = append(s.feeds, f)
		s.pending++
		s.arriveNext(int32(i))
	}
}

func (s *sim) addFaults() {
	s.faultAt = -1
	for i, f := range s.setup.Faults {
		if at := int64(f.At); s.faultAt < 0 || at < s.faultAt {
			s.faultAt = at
		}
		s.after(int64(f.At), event{kind: evFault, i: int32(i)})
	}
}

// topicOf returns the topic for tasks of a priority.
func topicOf(p task.Priority) string {
	if p == "" {
		p = task.Normal
	}
	return "tasks." + string(p)
}

func (s *sim) after(d int64, e event) {
	e.at = s.now + max(0, d)
	s.events.push(e)
}

func (s *sim) time() time.Time { return epoch.Add(time.Duration(s.now)) }

// fail ends the run because it violated an invariant.
func (s *sim) fail(format string, args ...any) {
	if s.bad == nil {
		s.bad = fmt.Errorf("simulating %s with seed %d, after %s: %s", s.setup.Policy, s.setup.Seed, time.Duration(s.now), fmt.Sprintf(format, args...))
	}
}

// run processes events until all tasks have ended.
func (s *sim) run(ctx context.Context) (*Outcome, error) {
	last := 5*s.to + int64(maxDrain)
	for s.bad == nil && len(s.events.es) > 0 && !(s.ending && s.live == 0 && s.now >= s.to) {
		e := s.events.pop()
		if s.setup.Cut && e.at > s.to {
			break
		}
		if e.at < s.now {
			s.fail("causality: an event at %s is in the past", time.Duration(e.at))
		}
		s.now = e.at
		if s.now > last {
			s.fail("conservation: %d tasks have not ended %s after the measured time", s.live, time.Duration(s.now-s.to).Round(time.Second))
		}
		if s.out.Events++; s.out.Events%65536 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.do(&e)
	}
	if s.bad == nil {
		if s.checkPlaces(); !s.setup.Cut {
			s.checkEnd()
		}
	}
	if s.bad != nil {
		return nil, s.bad
	}
	return s.out, nil
}

// do processes an event.
func (s *sim) do(e *event) {
	switch e.kind {
	case evArrive:
		s.enterLog(e.job)
		s.arriveNext(e.job.stream)
	case evReach:
		s.reach(e.job)
	case evEnd:
		if e.job.gen == e.gen {
			s.requestEnds(e.job)
		}
	case evRetryHere:
		if e.job.gen == e.gen && e.job.where == backingOff {
			e.job.where = atDevice
			m := s.machines[e.job.device]
			m.queue.pushFront(e.job)
			s.dispatch(m)
		}
	case evAsk:
		m := s.machines[e.i]
		m.askPending = false
		s.after(s.news-s.news/2, event{kind: evFreed, i: e.i, gen: uint32(s.acct.used[m.pool])})
	case evFreed:
		s.hear(e.i, int(e.gen))
	case evLog:
		s.enterLog(e.job)
	case evWake:
		if n := s.nodes[e.i]; n.gen == e.gen {
			n.work()
		}
	case evFleet:
		s.nodes[e.i].readFleet()
		s.after(int64(s.rc.RefreshInterval), *e)
	case evHeartbeat:
		s.beat(s.machines[e.i])
		s.after(int64(beatEvery), *e)
	case evReport:
		s.report()
		s.after(int64(s.wc.ReportInterval), *e)
	case evRenew:
		s.renew()
		s.after(int64(e.i)*int64(time.Millisecond), *e)
	case evFault:
		s.setMode(s.setup.Faults[e.i])
	case evMeasure:
		for _, m := range s.machines {
			m.count(s)
		}
	}
}

// arriveNext schedules the next arrival of a stream.
func (s *sim) arriveNext(i int32) {
	a, ok := s.feeds[i].next()
	if !ok {
		if s.pending--; s.pending == 0 {
			s.ending = true
		}
		return
	}
	at := int64(a.At)
	if at < s.now {
		s.fail("causality: stream %s has an arrival at %s, in the past", s.feeds[i].spec.Name, a.At)
		return
	}
	j := &job{work: a.Work, arrived: at, stream: i, device: -1}
	s.makeTask(j, s.feeds[i].spec)
	s.events.push(event{at: at, kind: evArrive, job: j})
}

// sessions are the session ids of tasks, for policies with session affinity.
var sessions = func() (names [1000]string) {
	for i := range names {
		names[i] = "s" + strconv.Itoa(i)
	}
	return names
}()

// makeTask creates the task of an arrival.
func (s *sim) makeTask(j *job, f *Stream) {
	t := &task.Task{
		ID: strconv.Itoa(len(s.jobs)), Tenant: cmp.Or(f.Tenant, task.DefaultTenant), Model: cmp.Or(f.Model, Model),
		Endpoint: task.EndpointChat, Priority: cmp.Or(f.Priority, task.Normal), Level: f.Level, MaxAttempts: f.Attempts,
		SessionID: sessions[s.random.sessions.IntN(len(sessions))], SubmittedAt: epoch.Add(time.Duration(j.arrived)),
	}
	if f.Deadline > 0 {
		t.Deadline = t.SubmittedAt.Add(f.Deadline)
	}
	j.task, j.source, j.router = t, s.feeds[j.stream].source, int32(s.random.split.IntN(len(s.nodes)))
	s.jobs = append(s.jobs, j)
	s.live++
}

// jobOf returns the job of a task.
func (s *sim) jobOf(t *task.Task) *job {
	n, err := strconv.Atoi(t.ID)
	if err != nil || n < 0 || n >= len(s.jobs) || s.jobs[n] == nil {
		s.fail("conservation: the router names task %q, which doesn't exist or has ended", t.ID)
		return nil
	}
	return s.jobs[n]
}

// ending is how a task ends.
type ending bool

const (
	succeeded ending = true
	failed    ending = false
)

// end ends a task.
func (s *sim) end(j *job, how ending) {
	if j.where == ended {
		s.fail("conservation: task %s ends twice", j.task.ID)
		return
	}
	j.where = ended
	s.live--
	n, _ := strconv.Atoi(j.task.ID)
	s.jobs[n] = nil
	o, st := s.out, &s.out.Streams[j.stream]
	if how == succeeded && s.now >= s.from && s.now < s.to {
		o.Ended++
		st.Work += j.work
	}
	if j.arrived < s.from || j.arrived >= s.to {
		return
	}
	o.Tasks++
	st.Tasks++
	if how == failed {
		o.Failures++
		st.Failures++
		return
	}
	took := seconds(s.now - j.arrived)
	o.Response.Add(took)
	st.Response.Add(took)
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }
