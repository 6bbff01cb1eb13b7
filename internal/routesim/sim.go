package routesim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// epoch is when virtual time begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// maxDrain bounds the virtual time that what is left may take after the last
// measured moment, with a multiple of the time before it. A run that needs more
// has lost a task.
const maxDrain = time.Hour

// place is where a task is.
type place uint8

const (
	inLog    place = iota // not in a router's window: behind a full one, or on its way back
	inWindow              // a router decides
	aside                 // parked in the log until its time
	onTheWay              // assigned, not at its device yet
	atDevice              // queued there
	running               // its request is under way
	pausing               // tried, and to be tried there again
	ended
)

// job is a task as the world knows it.
type job struct {
	task    *task.Task
	work    float64
	arrived int64
	chosen  int64 // last assignment
	started int64 // last request
	seen    bool  // it was assigned before
	tried   bool  // a request of it was begun before
	stream  int32
	router  int32
	device  int32
	gen     uint32 // of its request
	here    int    // requests on this device since it was assigned to it
	free    bool   // a slot was free when it came to its device
	serving bool   // its request has a slot
	hung    bool   // the workers have given up its request
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
	news  int64 // from a credit given back to the routers' hearing of it
	back  int64 // from a task going back to its being read again

	now    int64
	events heap4
	jobs   []*job // by the number in their id; nil when they have ended
	oldest int    // of jobs: all before have ended
	live   int
	nodes  []*node
	machs  []*machine
	byID   map[string]int32
	byPool map[string]int32
	acct   *account
	redis  known
	feeds  []feed

	random struct{ order, split, pauses, phases, sessions *rand.Rand } // see newRNG

	from, to int64          // measured
	ending   bool           // nothing more arrives
	faultAt  int64          // when the first device changes its ways
	told     map[string]int // what is told of freed credits; kept for its room
	out      *Outcome
	bad      error
	renewIDs []string
	pending  int // arrivals still to come
}

// feed is a stream at work.
type feed struct {
	spec   *Stream
	next   func() (Arrival, bool)
	source string // the topic of its tasks
}

// Run simulates a setup. The error says what is wrong with the setup, or which
// promise the run broke.
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
	var dc device.Config
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

// topicOf is the topic that tasks of a priority come from.
func topicOf(p task.Priority) string {
	if p == "" {
		p = task.Normal
	}
	return "tasks." + string(p)
}

const topicParked = "tasks.parked"

func (s *sim) after(d int64, e event) {
	e.at = s.now + max(0, d)
	s.events.push(e)
}

func (s *sim) time() time.Time { return epoch.Add(time.Duration(s.now)) }

// fail ends the run with the promise that it broke.
func (s *sim) fail(format string, args ...any) {
	if s.bad == nil {
		s.bad = fmt.Errorf("simulating %s with seed %d, after %s: %s", s.setup.Policy, s.setup.Seed, time.Duration(s.now), fmt.Sprintf(format, args...))
	}
}

// run goes from event to event until all has come to its end.
func (s *sim) run(ctx context.Context) (*Outcome, error) {
	last := 5*s.to + int64(maxDrain)
	for s.bad == nil && len(s.events.es) > 0 && !(s.ending && s.live == 0 && s.now >= s.to) {
		e := s.events.pop()
		if s.setup.Cut && e.at > s.to {
			break
		}
		if e.at < s.now {
			s.fail("causality: an event of %s comes now", time.Duration(e.at))
		}
		s.now = e.at
		if s.now > last {
			s.fail("conservation: %d tasks have not ended %s after the last came", s.live, time.Duration(s.now-s.to).Round(time.Second))
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

// do lets an event happen.
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
	case evAgain:
		if e.job.gen == e.gen && e.job.where == pausing {
			e.job.where = atDevice
			m := s.machs[e.job.device]
			m.queue.pushFront(e.job)
			s.dispatch(m)
		}
	case evAsk:
		m := s.machs[e.i]
		m.telling = false
		s.after(s.news-s.news/2, event{kind: evNews, i: e.i, gen: uint32(s.acct.used[m.pool])})
	case evNews:
		s.hear(e.i, int(e.gen))
	case evLog, evUnpark:
		s.enterLog(e.job)
	case evWake:
		if n := s.nodes[e.i]; n.gen == e.gen {
			n.work()
		}
	case evFleet:
		s.nodes[e.i].readFleet()
		s.after(int64(s.rc.RefreshInterval), *e)
	case evBeat:
		s.beat(s.machs[e.i])
		s.after(int64(beatEvery), *e)
	case evReport:
		s.report()
		s.after(int64(s.wc.ReportInterval), *e)
	case evRenew:
		s.renew()
		s.after(int64(e.i)*int64(time.Millisecond), *e)
	case evFault:
		s.breaks(s.setup.Faults[e.i])
	case evMeasure:
		for _, m := range s.machs {
			m.count(s)
		}
	}
}

// arriveNext draws the next task of a stream.
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
		s.fail("causality: stream %s gives a task of %s now", s.feeds[i].spec.Name, a.At)
		return
	}
	j := &job{work: a.Work, arrived: at, stream: i, device: -1}
	s.makeTask(j, s.feeds[i].spec)
	s.events.push(event{at: at, kind: evArrive, job: j})
}

// sessions is to whom tasks belong, for policies that keep them together.
var sessions = func() (names [1000]string) {
	for i := range names {
		names[i] = "s" + strconv.Itoa(i)
	}
	return names
}()

// makeTask makes the task of an arrival.
func (s *sim) makeTask(j *job, f *Stream) {
	t := &task.Task{
		ID: strconv.Itoa(len(s.jobs)), Tenant: cmp.Or(f.Tenant, task.DefaultTenant), Model: cmp.Or(f.Model, Model),
		Endpoint: task.EndpointChat, Priority: cmp.Or(f.Priority, task.Normal), Level: f.Level, MaxAttempts: f.Attempts,
		Session: sessions[s.random.sessions.IntN(len(sessions))], SubmittedAt: epoch.Add(time.Duration(j.arrived)),
	}
	if f.Deadline > 0 {
		t.Deadline = t.SubmittedAt.Add(f.Deadline)
	}
	j.task, j.source, j.router = t, s.feeds[j.stream].source, int32(s.random.split.IntN(len(s.nodes)))
	s.jobs = append(s.jobs, j)
	s.live++
}

// jobOf finds what the world knows of a task.
func (s *sim) jobOf(t *task.Task) *job {
	n, err := strconv.Atoi(t.ID)
	if err != nil || n < 0 || n >= len(s.jobs) || s.jobs[n] == nil {
		s.fail("conservation: the router names the task %q, which there is not or which has ended", t.ID)
		return nil
	}
	return s.jobs[n]
}

// end ends a task, for good.
func (s *sim) end(j *job, success bool) {
	if j.where == ended {
		s.fail("conservation: task %s ends twice", j.task.ID)
		return
	}
	j.where = ended
	s.live--
	n, _ := strconv.Atoi(j.task.ID)
	s.jobs[n] = nil
	o, st := s.out, &s.out.Streams[j.stream]
	if success && s.now >= s.from && s.now < s.to {
		o.Ended++
		st.Work += j.work
	}
	if j.arrived < s.from || j.arrived >= s.to {
		return
	}
	o.Tasks++
	st.Tasks++
	if !success {
		o.Failures++
		st.Failures++
		return
	}
	took := seconds(s.now - j.arrived)
	o.Response.Add(took)
	st.Response.Add(took)
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }
