package routesim

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/router"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/router/policy"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers"
)

// poisson returns the setup of a run on mixed12 with Poisson arrivals.
func poisson(t testing.TB, policy string, load float64, work Work, seed uint64, d time.Duration) Setup {
	t.Helper()
	f, err := NamedFleet("mixed12")
	require.NoError(t, err)
	const warm = 10 * time.Second
	return Setup{
		Fleet: f, Policy: policy, Routers: 1, Hop: 2 * time.Millisecond, Seed: seed, Warmup: warm, Duration: d,
		Streams: []Stream{{Name: "all", Begin: Poisson(load*f.Capacity(), work, 0, warm+d)}},
	}
}

// testedPolicies returns all policies, or two under the race detector.
func testedPolicies() []string {
	if raceEnabled {
		return []string{standard, "prequal"}
	}
	return policy.Names()
}

// Every policy upholds the invariants in a small run that includes priorities,
// deadlines, an unserved model and a failing device.
func TestPoliciesUpholdInvariants(t *testing.T) {
	t.Parallel()
	for _, p := range testedPolicies() {
		for _, routers := range []int{1, 4} {
			for _, binding := range []string{"early", "late"} {
				s := poisson(t, p, 0.9, Lognormal, 3, 5*time.Second)
				s.Routers, s.Binding = routers, binding
				s.Streams = append(s.Streams,
					Stream{Name: "high", Priority: task.High, Level: 5, Begin: Poisson(20, Exponential, 0, 15*time.Second)},
					Stream{Name: "late", Priority: task.Low, Deadline: 200 * time.Millisecond, Begin: Poisson(20, Exponential, 0, 15*time.Second)},
					Stream{Name: "strange", Model: UnservedModel, Deadline: 5 * time.Second, Begin: Burst(200, Exponential, 11*time.Second)})
				s.Faults = []Fault{{11 * time.Second, "b-001", Failing}, {13 * time.Second, "b-001", Healthy}}
				s.Router = func(c *router.Config) { c.MaxPendingTasks = 256 }
				o, err := Run(t.Context(), s)
				require.NoError(t, err, "%s %s with %d routers", p, binding, routers)
				require.EqualValues(t, 200, o.Streams[3].Failures)
			}
		}
	}
}

func TestRunsAreDeterministic(t *testing.T) {
	t.Parallel()
	for _, p := range testedPolicies() {
		s := poisson(t, p, 0.9, Exponential, 7, 5*time.Second)
		s.Routers = 3
		s.Faults = []Fault{{12 * time.Second, "c-002", Failing}}
		a, err := Run(t.Context(), s)
		require.NoError(t, err)
		b, err := Run(t.Context(), s)
		require.NoError(t, err)
		require.Equal(t, a.Trace, b.Trace, "decisions of %s", p)
		require.Equal(t, a.Mean(), b.Mean(), p)
		s.Seed++
		b, err = Run(t.Context(), s)
		require.NoError(t, err)
		require.NotEqual(t, a.Trace, b.Trace, "a different seed gives a different run")
	}
}

// Decisions can't depend on the future. Two worlds that are the same up to some
// moment must see the same decisions up to it, although everything differs
// afterwards: the work of all unfinished tasks, and a device that starts to fail.
func TestDecisionsDoNotDependOnTheFuture(t *testing.T) {
	t.Parallel()
	const moment = 10 * time.Second
	for _, p := range testedPolicies() {
		world := func(end time.Duration, other []bool) *sim {
			s := poisson(t, p, 0.8, Exponential, 5, 10*time.Second)
			s.Warmup, s.Duration, s.Routers, s.Cut = time.Second, end-time.Second, 2, true
			begin := s.Streams[0].Begin
			s.Streams[0].Begin = func(seed uint64) func() (Arrival, bool) {
				next, i := begin(seed), -1
				return func() (Arrival, bool) {
					a, ok := next()
					if i++; other != nil && (i >= len(other) || other[i]) {
						a.Work = 3*a.Work + 0.1
					}
					return a, ok
				}
			}
			if other != nil {
				s.Faults = []Fault{{moment + time.Millisecond, "a-001", Failing}}
			}
			run, err := newSim(&s)
			require.NoError(t, err)
			_, err = run.run(t.Context())
			require.NoError(t, err, p)
			return run
		}
		first := world(moment, nil)
		other := make([]bool, len(first.jobs))
		for i, j := range first.jobs {
			other[i] = j != nil
		}
		second := world(moment, other)
		require.Greater(t, first.out.Routed, int64(1000), p)
		require.Equal(t, first.out.Trace, second.out.Trace, "%s uses knowledge of the future", p)
		require.NotEqual(t, world(moment+2*time.Second, nil).out.Trace, world(moment+2*time.Second, other).out.Trace, "the difference shows later: %s", p)
	}
}

// The simulation must detect violations of its invariants: break each one once.
func TestViolationsAreDetected(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		says   string
		breaks func(*sim)
	}{
		"task queued twice":     {"conservation", func(s *sim) { s.machines[0].queue.push(s.jobs[len(s.jobs)-1]) }},
		"task lost":             {"conservation", func(s *sim) { s.live++ }},
		"task ends twice":       {"conservation", func(s *sim) { j := oneRunning(s); s.returnCredit(j); s.end(j, succeeded); s.end(j, succeeded) }},
		"one slot too many":     {"slots", func(s *sim) { m := s.machines[oneAt(s, atDevice).device]; m.running = 9; s.begin(m, m.queue.first()) }},
		"event in the past":     {"causality", func(s *sim) { s.events.push(event{at: s.now - 1, kind: evHeartbeat}) }},
		"dispatched too early":  {"causality", func(s *sim) { j := oneRunning(s); j.chosen = s.now; s.reach(j) }},
		"credit not returned":   {"credits", func(s *sim) { s.acct.take(s.machines[0].pool, 1) }},
		"credit returned twice": {"credits", func(s *sim) { s.acct.release(s.now/1e6, oneRunning(s).lease, 1) }},
		"heartbeat from future": {"knowledge", func(s *sim) { s.redis.devices[0].At = s.time().Add(time.Second * 9) }},
		"rate from future": {"knowledge", func(s *sim) {
			s.redis.rates[device.RateKey{DeviceID: "x"}] = device.Rate{ServiceMS: 1, At: s.time().Add(time.Hour)}
		}},
		"an assignment to an unknown device": {"there is not", func(s *sim) { assignTo(s, oneInWindow(s), "x") }},
		"one without a credit": {"credits", func(s *sim) {
			assignTo(s, oneInWindow(s), "a-001")
		}},
		"a task twice": {"conservation", func(s *sim) {
			assignTo(s, oneRunning(s), "a-001")
		}},
		"idle slot": {"work conservation", func(s *sim) { s.nodes[0].view[0] = 0; s.nodes[0].checkWork() }},
	} {
		s := poisson(t, "fifo", 1.3, Exponential, 2, 10*time.Second)
		s.Warmup = 0
		run, err := newSim(&s)
		require.NoError(t, err)
		for run.now < int64(5*time.Second) {
			e := run.events.pop()
			run.now = e.at
			run.do(&e)
		}
		require.NoError(t, run.bad)
		c.breaks(run)
		_, err = run.run(t.Context())
		require.ErrorContains(t, err, c.says, name)
	}
}

// assignTo makes the first router assign a task without a credit.
func assignTo(s *sim, j *job, deviceID string) {
	s.nodes[0].Assign([]decide.Pick{{Item: &decide.Item{Task: j.task}, Device: &device.Device{ID: deviceID}}}, s.time())
}

func oneRunning(s *sim) *job  { return oneAt(s, running) }
func oneInWindow(s *sim) *job { return oneAt(s, inWindow) }

func oneAt(s *sim, where place) *job {
	return s.jobs[slices.IndexFunc(s.jobs, func(j *job) bool { return j != nil && j.where == where })]
}

func TestHeapAndQueueOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var h heap4
		var q fifo
		var times []int64
		var line []*job
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				at := rapid.Int64Range(0, 20).Draw(t, "at")
				h.push(event{at: at})
				times = append(times, at)
				slices.Sort(times)
				j := &job{work: float64(at)}
				if rapid.Bool().Draw(t, "front") {
					q.pushFront(j)
					line = slices.Insert(line, 0, j)
				} else {
					q.push(j)
					line = append(line, j)
				}
			},
			"pop": func(t *rapid.T) {
				if len(times) == 0 {
					return
				}
				e := h.pop()
				require.Equal(t, times[0], e.at)
				if len(h.es) > 0 {
					require.True(t, before(&e, &h.es[0]), "events of the same time keep their order")
				}
				times = times[1:]
				require.Same(t, line[0], q.pop())
				line = line[1:]
			},
			"": func(t *rapid.T) { require.Equal(t, len(line), q.len()) },
		})
	})
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h, other Histogram
	for i := range 10_000 {
		target := &h
		if i%3 == 0 {
			target = &other
		}
		target.Add(float64(i+1) / 1000)
	}
	h.Merge(&other)
	require.EqualValues(t, 10_000, h.N)
	require.InDelta(t, 5.0005, h.Mean(), 1e-9)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999, 1} {
		require.InEpsilon(t, 10*q, h.Quantile(q), 0.001)
	}
	require.Zero(t, (&Histogram{}).Quantile(0.5))
	require.Zero(t, (&Histogram{}).Mean())
}

// One slot is an M/M/1 queue, and c equal slots are M/M/c.
func TestLowerBoundMatchesTheory(t *testing.T) {
	t.Parallel()
	one := Fleet{{ID: "x", Slots: 1, Service: 100 * time.Millisecond}}
	require.InEpsilon(t, 1/(10.0-7.0), LowerBound(one, 7), 1e-9)
	two := Fleet{{ID: "x", Slots: 1, Service: 100 * time.Millisecond}, {ID: "y", Slots: 1, Service: 100 * time.Millisecond}}
	rho := 0.75
	require.InEpsilon(t, 0.1/(1-rho*rho), LowerBound(two, 15), 1e-9)
	// At almost no load, every task gets the fastest slot.
	f, err := NamedFleet("mixed12")
	require.NoError(t, err)
	require.InEpsilon(t, 0.040, LowerBound(f, 1), 1e-3)
	require.InEpsilon(t, 345.8333, f.Capacity(), 1e-6)
	require.True(t, math.IsInf(LowerBound(f, 346), 1))
}

// With a single slot, the response time is that of M/M/1 or, for lognormal work,
// given by the Pollaczek–Khinchine formula, plus the dispatch latency.
func TestSingleSlotMatchesTheory(t *testing.T) {
	t.Parallel()
	const service, load, hop = 0.1, 0.5, 0.001
	for name, c := range map[string]struct {
		work Work
		want float64
	}{
		"M/M/1": {Exponential, service / (1 - load)},
		"M/G/1": {Lognormal, service + load*service*(1+4)/(2*(1-load))},
	} {
		var o Outcome
		for seed := range uint64(3) {
			s := poisson(t, "fifo", 0.5, c.work, seed+1, 4000*time.Second)
			s.Fleet, s.Hop = Fleet{{ID: "x", Slots: 1, Service: 100 * time.Millisecond}}, time.Millisecond
			s.Workers = func(c *workers.Config) { c.HangFactor = 10_000 } // very long tasks must not count as a hanging device
			s.Streams[0].Begin = Poisson(load/service, c.work, 0, s.Warmup+s.Duration)
			one, err := Run(t.Context(), s)
			require.NoError(t, err)
			o.Merge(one)
		}
		require.InEpsilon(t, c.want+hop, o.Mean(), 0.1, name)
		require.InEpsilon(t, load, o.Utilisation(), 0.03, name)
	}
}

func TestWorkHasMeanOne(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]struct {
		work Work
		cv   float64
	}{"exponential": {Exponential, 1}, "lognormal": {Lognormal, 2}} {
		rng := newRNG(1, rngWork)
		const n = 400_000
		sum, squares := 0.0, 0.0
		for range n {
			v := w.work(rng)
			sum += v
			squares += v * v
		}
		mean := sum / n
		require.InEpsilon(t, 1, mean, 0.02, name)
		require.InEpsilon(t, w.cv, math.Sqrt(squares/n-mean*mean)/mean, 0.1, name)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "trace.csv")
	head := "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	lines := head + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2224670,879,0\n"
	require.NoError(t, os.WriteFile(path, []byte(lines), 0o600))
	tr, err := ReadTrace(path)
	require.NoError(t, err)
	require.InDelta(t, 3, tr.work[0]+tr.work[1]+tr.work[2], 1e-9, "the mean is 1")
	require.InEpsilon(t, 109.0/44, tr.work[1]/tr.work[0], 1e-9)
	next := tr.Arrivals(100, nil, 0, 100*time.Second)(1)
	n, last := 0, time.Duration(0)
	for a, ok := next(); ok; a, ok = next() {
		require.GreaterOrEqual(t, a.At, last)
		last = a.At
		n++
	}
	require.InDelta(t, 10_000, n, 100, "the requested rate")
	for name, text := range map[string]string{
		"no header": strings.TrimPrefix(lines, head), "empty": "", "one line": head + "2023-11-16 18:15:46.6805900,374,44\n",
		"backwards": head + "2023-11-16 18:15:46,1,1\n2023-11-16 18:15:45,1,1\n", "invalid number": head + "2023-11-16 18:15:46,1,x\n", "invalid time": head + "now,1,1\n",
	} {
		_, err := parseTrace(strings.NewReader(text))
		require.Error(t, err, name)
	}
	_, err = ReadTrace(path + "x")
	require.Error(t, err)
}

func FuzzTrace(f *testing.F) {
	f.Add("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n")
	f.Fuzz(func(t *testing.T, text string) {
		fuzzing.Bound(t, len(text), func() { _, _ = parseTrace(strings.NewReader(text)) })
		tr, err := parseTrace(strings.NewReader(text))
		if err != nil {
			return
		}
		next := tr.Arrivals(10, nil, 0, 10*time.Second)(1)
		last := time.Duration(0)
		for range 1000 {
			a, ok := next()
			if !ok {
				break
			}
			require.GreaterOrEqual(t, a.At, last)
			require.GreaterOrEqual(t, a.Work, 0.0)
			last = a.At
		}
	})
}

func TestSetupIsChecked(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]func(*Setup){
		"no devices": func(s *Setup) { s.Fleet = nil }, "no tasks": func(s *Setup) { s.Streams = nil },
		"no routers": func(s *Setup) { s.Routers = 0 }, "no measured time": func(s *Setup) { s.Duration = 0 }, "negative dispatch latency": func(s *Setup) { s.Hop = -1 },
		"unknown device": func(s *Setup) { s.Faults = []Fault{{0, "x", Failing}} }, "unknown policy": func(s *Setup) { s.Policy = "x" },
	} {
		s := poisson(t, "fifo", 0.5, Exponential, 1, time.Second)
		breaks(&s)
		_, err := Run(t.Context(), s)
		require.Error(t, err, name)
	}
}
