package routesim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Arm is one line of the experiment's table: what is compared with the others.
type Arm struct {
	Policy   string
	Binding  string // auto, late, early
	Arrivals string // poisson, trace
	Work     string // exponential, lognormal, trace
	Load     float64
	Routers  int
	Hop      time.Duration
	Fleet    string
}

// Plan is an experiment: every arm with every seed.
type Plan struct {
	Arms     []Arm
	Seeds    int
	First    uint64 // the first seed; the others follow
	Warmup   time.Duration
	Duration time.Duration
	Tasks    int // instead of Duration: so many tasks a run, on average; 0: Duration says
	Learned  bool
	Trace    *Trace
	Parallel int // runs at a time; 0: as many as there are processors
}

// Result is what came of an arm.
type Result struct {
	Arm
	Seeds   int
	Outcome Outcome
	Bound   float64 // seconds; +Inf when the fleet cannot keep up
	Exact   bool    // the bound is one: Poisson arrivals, exponential work
}

// ArrivalNames and WorkNames list what an arm may have.
var (
	ArrivalNames = []string{"poisson", "trace"}
	WorkNames    = []string{"exponential", "lognormal", "trace"}
)

// Setup is the run of an arm with a seed.
func (p *Plan) Setup(a Arm, seed uint64) (Setup, error) {
	f, err := NamedFleet(a.Fleet)
	if err != nil {
		return Setup{}, err
	}
	if !(a.Load > 0) || a.Load > 10 {
		return Setup{}, fmt.Errorf("a load of %g is out of range; use a share of the fleet's capacity, up to 10", a.Load)
	}
	rate := a.Load * f.Capacity()
	d := p.Duration
	if p.Tasks > 0 {
		d = time.Duration(float64(p.Tasks) / rate * float64(time.Second))
	}
	begin, err := p.arrivals(a, rate, p.Warmup+d)
	if err != nil {
		return Setup{}, err
	}
	return Setup{
		Fleet: f, Policy: a.Policy, Binding: a.Binding, Routers: a.Routers, Hop: a.Hop, Seed: seed,
		Warmup: p.Warmup, Duration: d, Learned: p.Learned, Streams: []Stream{{Name: "all", Begin: begin}},
	}, nil
}

func (p *Plan) arrivals(a Arm, rate float64, to time.Duration) (func(uint64) func() (Arrival, bool), error) {
	if p.Trace == nil && (a.Arrivals == "trace" || a.Work == "trace") {
		return nil, errors.New("arrivals or work of a trace need the trace; name its file with --trace")
	}
	var work Work
	switch a.Work {
	case "exponential":
		work = Exponential
	case "lognormal":
		work = Lognormal
	case "trace":
	default:
		return nil, fmt.Errorf("%q is no work; use %s", a.Work, strings.Join(WorkNames, ", "))
	}
	switch a.Arrivals {
	case "trace":
		return p.Trace.Arrivals(rate, work, 0, to), nil
	case "poisson":
		if work == nil {
			work = p.Trace.Works
		}
		return Poisson(rate, work, 0, to), nil
	}
	return nil, fmt.Errorf("%q are no arrivals; use %s", a.Arrivals, strings.Join(ArrivalNames, ", "))
}

// Run makes all runs, seed by seed through all arms, and gives the results in
// order of the arms. told, if any, is called as runs end; by one goroutine at a
// time.
func (p *Plan) Run(ctx context.Context, told func(done, all int)) ([]Result, error) {
	if p.Seeds < 1 || len(p.Arms) == 0 {
		return nil, errors.New("an experiment needs a seed and an arm")
	}
	results := make([]Result, len(p.Arms))
	for i, a := range p.Arms {
		f, err := NamedFleet(a.Fleet)
		if err != nil {
			return nil, err
		}
		results[i] = Result{
			Arm: a, Seeds: p.Seeds, Bound: LowerBound(f, a.Load*f.Capacity()), Exact: a.Arrivals == "poisson" && a.Work == "exponential",
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m := &merger{p: p, results: results, early: map[int]*Outcome{}, told: told}
	next := make(chan int)
	var wg sync.WaitGroup
	for range p.workers() {
		wg.Go(func() {
			for k := range next {
				o, err := p.one(ctx, k)
				if err != nil {
					cancel(err)
					return
				}
				m.add(k, o)
			}
		})
	}
feed:
	for k := range p.Seeds * len(p.Arms) {
		select {
		case next <- k:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return results, nil
}

func (p *Plan) workers() int {
	if p.Parallel > 0 {
		return p.Parallel
	}
	return runtime.GOMAXPROCS(0)
}

// one makes the k-th run: the seeds in turn, each through all arms.
func (p *Plan) one(ctx context.Context, k int) (*Outcome, error) {
	setup, err := p.Setup(p.Arms[k%len(p.Arms)], p.First+uint64(k/len(p.Arms)))
	if err != nil {
		return nil, err
	}
	return Run(ctx, setup)
}

// merger puts outcomes together in the order of their seeds, whichever run ends
// first: sums of floating point numbers depend on it.
type merger struct {
	mu      sync.Mutex
	p       *Plan
	results []Result
	early   map[int]*Outcome
	done    int
	told    func(done, all int)
}

func (m *merger) add(k int, o *Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	arms := len(m.p.Arms)
	m.early[k] = o
	for i := k % arms; ; {
		r := &m.results[i]
		next := len(r.Outcome.Means)*arms + i
		o, ok := m.early[next]
		if !ok {
			break
		}
		delete(m.early, next)
		r.Outcome.Merge(o)
	}
	m.done++
	if m.told != nil {
		m.told(m.done, arms*m.p.Seeds)
	}
}

// Limit is what a response must keep to, for [Plan.MaxRate].
type Limit struct {
	Quantile float64
	Within   time.Duration
}

func (l Limit) String() string { return fmt.Sprintf("p%g ≤ %s", l.Quantile*100, l.Within) }

// maxRateStep is how exactly the highest load is found.
const maxRateStep = 0.002

// MaxRate finds the highest load at which an arm keeps to the limit, by bisection,
// and gives the result at that load. The arm's own load is not looked at.
func (p *Plan) MaxRate(ctx context.Context, a Arm, l Limit) (Result, error) {
	low, high := 0.0, 1.5
	var best Result
	for high-low > maxRateStep {
		a.Load = (low + high) / 2
		part := *p
		part.Arms = []Arm{a}
		rs, err := part.Run(ctx, nil)
		if err != nil {
			return Result{}, err
		}
		if rs[0].Outcome.Quantile(l.Quantile) <= l.Within.Seconds() && rs[0].Outcome.Failures == 0 {
			low, best = a.Load, rs[0]
		} else {
			high = a.Load
		}
	}
	if low == 0 {
		return Result{}, fmt.Errorf("%s keeps to %s at no load", a.Policy, l)
	}
	return best, nil
}

// Spread is the standard error of the mean response over the seeds, in seconds.
func (r *Result) Spread() float64 {
	n := float64(len(r.Outcome.Means))
	if n < 2 {
		return 0
	}
	mean := 0.0
	for _, m := range r.Outcome.Means {
		mean += m / n
	}
	sum := 0.0
	for _, m := range r.Outcome.Means {
		sum += (m - mean) * (m - mean)
	}
	return math.Sqrt(sum / (n - 1) / n)
}

// Cross makes an arm of every combination, loads and settings outside and
// policies inside, so that what is compared stands together.
func Cross(fleets, arrivals, works []string, loads []float64, routers []int, hops []time.Duration, bindings, policies []string) []Arm {
	var arms []Arm
	for _, f := range fleets {
		for _, ar := range arrivals {
			for _, w := range works {
				for _, h := range hops {
					for _, n := range routers {
						for _, l := range loads {
							for _, b := range bindings {
								for _, p := range policies {
									arms = append(arms, Arm{p, b, ar, w, l, n, h, f})
								}
							}
						}
					}
				}
			}
		}
	}
	return slices.Clip(arms)
}
