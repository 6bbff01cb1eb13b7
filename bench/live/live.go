package live

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/stream"
)

// Options are the options of Run.
type Options struct {
	Program  string        // path of the batchyard binary
	Services *Services     // nil means embedded services
	Policies []Policy      // the first one is the baseline
	Rounds   int           // turns of each policy
	Tasks    int           // size of the backlog
	Rate     float64       // of the open arrivals, in tasks per second
	Warmup   time.Duration // of arrivals that are not measured
	Duration time.Duration // of the open arrivals
	Seed     uint64        // of the first round; 0 means 1
	Fleet    []fleet.Spec  // nil means fleet.Mixed12
	Patience time.Duration // maximum wait for the next result; 0 means a minute
	Logger   *slog.Logger
	Progress func(note string)
}

// Policy is a policy of the router. Early-binding policies run as published: tasks
// stay on the device that they were assigned to.
type Policy struct {
	Name string
	Late bool // late binding
}

// Services are an external Kafka, Redis and Postgres.
type Services struct {
	ConfigPath  string // for the processes
	Kafka       stream.Config
	Redis       device.RedisConfig
	PostgresURL string // its user must be allowed to create databases
}

// Turn is the result of one turn of a policy.
type Turn struct {
	Seed      uint64
	Latencies []Latency     // of the open arrivals
	Tasks     int           // size of the backlog
	All       time.Duration // until the last result of the backlog
	Most      time.Duration // until 95 % of its results
	Busy      float64       // fraction of the fleet's capacity in use until Most
	BusyAll   float64       // … until All
	Failures  int           // results other than SUCCESS, including the warm-up
}

// Latency is the response time of a task and its parts.
type Latency struct {
	Total   time.Duration // from the call of Submit until the result was read
	Waited  time.Duration // until the task was assigned
	Hop     time.Duration // from then until its request started
	Request time.Duration // from then until the device answered
}

// Result is the result of one policy.
type Result struct {
	Policy
	Rounds int
	Rate   float64
	Turns  []Turn
}

func (o *Options) fill() error {
	o.Rounds, o.Seed = max(o.Rounds, 1), cmp.Or(o.Seed, 1)
	o.Patience = cmp.Or(o.Patience, time.Minute)
	if o.Fleet == nil {
		o.Fleet = fleet.Mixed12()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch {
	case len(o.Policies) == 0:
		return errors.New("no policy is given")
	case o.Tasks < 1:
		return errors.New("the backlog must have at least one task")
	case o.Rate <= 0 || o.Duration <= 0 || o.Warmup < 0:
		return errors.New("the rate and duration of the arrivals must be positive, and the warm-up not negative")
	}
	return nil
}

// Run measures the policies. If ctx ends, it stops, cleans up and returns an error.
func Run(ctx context.Context, o Options) (_ []Result, err error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("measuring policies live: %w", err)
	}
	s, err := openSite(ctx, &o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rs := make([]Result, len(o.Policies))
	for i, p := range o.Policies {
		rs[i] = Result{Policy: p, Rounds: o.Rounds, Rate: o.Rate}
	}
	for round := range o.Rounds {
		for i := range rs {
			r := &rs[i]
			say := func(step string) {
				o.Progress(fmt.Sprintf("round %d of %d, %s: %s", round+1, o.Rounds, r.Name, step))
			}
			t, err := s.turn(ctx, r.Policy, o.Seed+uint64(round), say)
			if err != nil {
				return nil, fmt.Errorf("measuring %s in round %d: %w", r.Name, round+1, err)
			}
			r.Turns = append(r.Turns, t)
			say(t.summary())
		}
	}
	return rs, nil
}

func (t *Turn) summary() string {
	return fmt.Sprintf("%.1f tasks/s (95 %%: %.1f), mean %.1f ms, p99 %.0f ms",
		t.throughput(), t.throughputMost(), mean(t.Latencies, Latency.total)*1000, quantile(t.Latencies, Latency.total, 0.99)*1000)
}

// turn measures a policy in one turn.
func (s *site) turn(ctx context.Context, policy Policy, seed uint64, say func(string)) (t Turn, err error) {
	say("starting")
	p, err := s.place(ctx)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	server, err := p.serve(ctx, policy)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, server.end()) }()
	yard, err := p.startDevices(ctx, seed, server.url)
	if err != nil {
		return t, err
	}
	defer yard.close()
	l, err := p.startLoad(ctx, server)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, l.close()) }()

	t.Seed = seed
	if s.o.Warmup > 0 {
		say("warming up")
		if _, err := l.arrivals(ctx, "warm", s.o.Warmup, seed); err != nil {
			return t, err
		}
	}
	say("open arrivals")
	if t.Latencies, err = l.arrivals(ctx, "open", s.o.Duration, seed); err != nil {
		return t, err
	}
	say("backlog")
	if err := l.backlog(ctx, yard, &t); err != nil {
		return t, err
	}
	say("stopping")
	yard.close()
	if err := server.end(); err != nil {
		return t, err
	}
	t.Failures, err = l.check(ctx)
	return t, err
}

// Machine describes the machine for the report.
func Machine() string {
	m := fmt.Sprintf("%d processors", runtime.NumCPU())
	if l := loadAverage(); l != "" {
		m += ", load average " + l
	}
	return m
}
