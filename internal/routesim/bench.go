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

// Arm is one combination of settings in an experiment: one line of its table.
type Arm struct {
	Policy   string
	Binding  string // auto, late, early
	Arrivals string // poisson, trace
	Work     string // exponential, lognormal, trace
	Load     float64
	Routers  int
	Hop      time.Duration // dispatch latency
	Fleet    string
}

// Plan is an experiment: every arm with every seed.
type Plan struct {
	Arms     []Arm
	Seeds    int
	First    uint64 // the first seed; the others follow it
	Warmup   time.Duration
	Duration time.Duration
	Tasks    int // average number of tasks per run, instead of Duration; 0 means use Duration
	Learned  bool
	Trace    *Trace
	Parallel int // concurrent runs; 0 means GOMAXPROCS
}

// Result is the result of an arm.
type Result struct {
	Arm
	Seeds   int
	Outcome Outcome
	Bound   float64 // lower bound of the mean response, in seconds; +Inf if the fleet cannot keep up
	Exact   bool    // Bound is a true bound: Poisson arrivals and exponential work
}

// ArrivalNames and WorkNames list the valid values of Arm.Arrivals and Arm.Work.
var (
	ArrivalNames = []string{"poisson", "trace"}
	WorkNames    = []string{"exponential", "lognormal", "trace"}
)

// Setup returns the setup of one run: an arm with a seed.
func (p *Plan) Setup(a Arm, seed uint64) (Setup, error) {
	f, err := NamedFleet(a.Fleet)
	if err != nil {
		return Setup{}, err
	}
	if !(a.Load > 0) || a.Load > 10 {
		return Setup{}, fmt.Errorf("load %g is out of range: use a fraction of the fleet's capacity, up to 10", a.Load)
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
		return nil, errors.New("trace arrivals and trace work need a trace: name its file with --trace")
	}
	var work Work
	switch a.Work {
	case "exponential":
		work = Exponential
	case "lognormal":
		work = Lognormal
	case "trace":
	default:
		return nil, fmt.Errorf("unknown work %q: use %s", a.Work, strings.Join(WorkNames, ", "))
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
	return nil, fmt.Errorf("unknown arrivals %q: use %s", a.Arrivals, strings.Join(ArrivalNames, ", "))
}

// Run performs all runs, one seed after the other through all arms, and returns
// the results in the order of the arms. progress, which may be nil, is called as
// runs end, never concurrently.
func (p *Plan) Run(ctx context.Context, progress func(done, all int)) ([]Result, error) {
	if p.Seeds < 1 || len(p.Arms) == 0 {
		return nil, errors.New("an experiment needs at least one seed and one arm")
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
	m := &merger{p: p, results: results, early: map[int]*Outcome{}, progress: progress}
	next := make(chan int)
	var wg sync.WaitGroup
	for range p.workers() {
		wg.Go(func() {
			for k := range next {
				o, err := p.runOne(ctx, k)
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

// runOne performs the k-th run: all arms with the first seed, then all arms with
// the next.
func (p *Plan) runOne(ctx context.Context, k int) (*Outcome, error) {
	setup, err := p.Setup(p.Arms[k%len(p.Arms)], p.First+uint64(k/len(p.Arms)))
	if err != nil {
		return nil, err
	}
	return Run(ctx, setup)
}

// merger merges outcomes in the order of their seeds, regardless of which run ends
// first, because floating-point sums depend on the order.
type merger struct {
	mu       sync.Mutex
	p        *Plan
	results  []Result
	early    map[int]*Outcome // by run; waiting for the run of an earlier seed
	done     int
	progress func(done, all int)
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
	if m.progress != nil {
		m.progress(m.done, arms*m.p.Seeds)
	}
}

// Limit is a limit on a quantile of the response time, for [Plan.MaxRate].
type Limit struct {
	Quantile float64
	Within   time.Duration
}

func (l Limit) String() string { return fmt.Sprintf("p%g ≤ %s", l.Quantile*100, l.Within) }

// maxRateStep is the precision of MaxRate's load.
const maxRateStep = 0.002

// MaxRate finds, by bisection, the highest load at which an arm stays within the
// limit, and returns the result at that load. It ignores the arm's own load.
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
		return Result{}, fmt.Errorf("%s exceeds %s at every load", a.Policy, l)
	}
	return best, nil
}

// Spread returns the standard error of the mean response over the seeds, in seconds.
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

// Grid is the values that the settings of an experiment take.
type Grid struct {
	Fleets, Arrivals, Works []string
	Hops                    []time.Duration
	Routers                 []int
	Loads                   []float64
	Bindings, Policies      []string
}

// Arms returns an arm for every combination. Policies vary fastest, so that the
// arms to compare are next to each other.
func (g Grid) Arms() []Arm {
	var arms []Arm
	for _, f := range g.Fleets {
		for _, ar := range g.Arrivals {
			for _, w := range g.Works {
				for _, h := range g.Hops {
					for _, n := range g.Routers {
						for _, l := range g.Loads {
							for _, b := range g.Bindings {
								for _, p := range g.Policies {
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
