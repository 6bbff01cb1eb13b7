package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

const (
	tenant     = "bench"
	model      = "bench"
	readGroup  = "bench"
	submitMost = 500 // maximum tasks per submission
	// most is the fraction of a backlog that counts as most of it.
	most = 0.95
)

var input = task.Input(`{"messages":[{"role":"user","content":"How far is it from here to there?"}],"max_tokens":16}`)

// load submits the tasks of a turn and reads their results.
type load struct {
	p        *place
	server   *process
	producer *producer.Producer
	patience time.Duration

	stop    context.CancelFunc
	reading sync.WaitGroup
	readErr error

	mu    sync.Mutex
	asked map[string]*phase // by task
	sent  int
}

// phase is a set of tasks to wait for.
type phase struct {
	n        int
	begun    map[string]time.Time // times of submission
	seen     map[string]Latency   // tasks with a result
	mostSeen func()               // called once, when most have a result
	heard    chan struct{}        // receives after each result
	done     chan struct{}        // closed when all have a result
}

func newPhase(n int) *phase {
	return &phase{n: n, begun: make(map[string]time.Time, n), seen: make(map[string]Latency, n), heard: make(chan struct{}, 1), done: make(chan struct{})}
}

// startLoad returns once it is consuming the results topic.
func (p *place) startLoad(ctx context.Context, server *process) (*load, error) {
	l := &load{p: p, server: server, patience: p.s.o.Patience, asked: map[string]*phase{}}
	l.producer = producer.New(producer.Config{}, producer.Deps{
		Log: p.log, Redis: p.redis, Prefix: p.prefix, Cancels: device.NewCancels(p.redis, device.Config{}, p.prefix),
		Logger: slog.New(slog.DiscardHandler), Instance: "producer@bench",
	})
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	ready, ended := make(chan struct{}), make(chan struct{})
	l.reading.Go(func() {
		defer close(ended)
		l.readErr = p.log.Consume(reading, stream.ConsumerConfig{Group: readGroup, Topic: stream.Results}, l.read, func() { close(ready) })
	})
	select {
	case <-ready:
		return l, nil
	case <-ended:
		return nil, errors.Join(errors.New("cannot read the results topic"), l.close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), l.close())
	}
}

func (l *load) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanWithin)
	defer cancel()
	l.stop()
	l.reading.Wait()
	return errors.Join(l.readErr, l.producer.Close(ctx))
}

// read handles results from the results topic.
func (l *load) read(_ context.Context, recs []*stream.Record) {
	now := time.Now()
	for _, rec := range recs {
		if r, err := task.DecodeResult(rec.Value, rec.Header(task.HeaderContentType)); err == nil { // otherwise check reports the missing result
			l.answered(r, now)
		}
		rec.Done()
	}
}

func (l *load) answered(r *task.Result, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ph := l.asked[r.TaskID]
	if ph == nil {
		return
	}
	if _, again := ph.seen[r.TaskID]; again {
		return
	}
	ph.seen[r.TaskID] = Latency{
		Total:  now.Sub(ph.begun[r.TaskID]),
		Waited: between(r.SubmittedAt, r.AssignedAt), Hop: between(r.AssignedAt, r.StartedAt), Request: between(r.StartedAt, r.FinishedAt),
	}
	n := len(ph.seen)
	if ph.mostSeen != nil && float64(n) >= most*float64(ph.n) {
		ph.mostSeen()
		ph.mostSeen = nil
	}
	select {
	case ph.heard <- struct{}{}:
	default:
	}
	if n == ph.n {
		close(ph.done)
	}
}

// between is the time from one to the other, or 0 if the task did not get that far.
func between(from, to time.Time) time.Duration {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return to.Sub(from)
}

func newTask(id string) *task.Task {
	return &task.Task{ID: id, Tenant: tenant, Model: model, Endpoint: task.EndpointChat, Input: input}
}

// submit submits tasks of a phase.
func (l *load) submit(ctx context.Context, ph *phase, tasks ...*task.Task) error {
	l.mu.Lock()
	now := time.Now()
	for _, t := range tasks {
		l.asked[t.ID], ph.begun[t.ID] = ph, now
	}
	l.sent += len(tasks)
	l.mu.Unlock()
	return l.producer.Submit(ctx, tasks, task.Origin{Actor: tenant})
}

// arrivals submits tasks one by one, at random times determined by the seed, and
// waits for the results.
func (l *load) arrivals(ctx context.Context, name string, d time.Duration, seed uint64) ([]Latency, error) {
	rng := rand.New(rand.NewPCG(seed, uint64(len(name))))
	var at []time.Duration
	for t := 0.0; ; {
		t += rng.ExpFloat64() / l.p.s.o.Rate
		if t >= d.Seconds() && len(at) > 0 {
			break
		}
		at = append(at, time.Duration(t*float64(time.Second)))
	}
	ph := newPhase(len(at))
	var submits sync.WaitGroup
	var failed errorOnce
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, after := range at {
		timer.Reset(time.Until(begin.Add(after)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			submits.Wait()
			return nil, ctx.Err()
		case <-l.server.done:
			submits.Wait()
			return nil, l.server.died()
		}
		submits.Go(func() { failed.set(l.submit(ctx, ph, newTask(fmt.Sprintf("%s-%d", name, i)))) })
	}
	submits.Wait()
	if err := failed.get(); err != nil {
		return nil, err
	}
	if err := l.wait(ctx, ph); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Latency, 0, len(ph.seen))
	for _, s := range ph.seen {
		out = append(out, s)
	}
	return out, nil
}

// backlog submits all tasks at once and waits for the results.
func (l *load) backlog(ctx context.Context, y *yard, t *Turn) error {
	t.Tasks = l.p.s.o.Tasks
	ph := newPhase(t.Tasks)
	var tasks []*task.Task
	for i := range t.Tasks {
		tasks = append(tasks, newTask(fmt.Sprintf("backlog-%d", i)))
	}
	before, begin := y.work(), time.Now()
	ph.mostSeen = func() {
		t.Most = time.Since(begin)
		t.Busy = float64(y.work()-before) / float64(t.Most)
	}
	for len(tasks) > 0 {
		n := min(submitMost, len(tasks))
		if err := l.submit(ctx, ph, tasks[:n]...); err != nil {
			return err
		}
		tasks = tasks[n:]
	}
	if err := l.wait(ctx, ph); err != nil {
		return err
	}
	l.mu.Lock() // also orders mostSeen's writes before the reads below
	defer l.mu.Unlock()
	for id, s := range ph.seen {
		t.All = max(t.All, ph.begun[id].Add(s.Total).Sub(begin))
	}
	t.BusyAll = float64(y.work()-before) / float64(t.All)
	return nil
}

// wait returns when all tasks of a phase have a result.
func (l *load) wait(ctx context.Context, ph *phase) error {
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	for {
		select {
		case <-ph.done:
			return nil
		case <-ph.heard:
			timer.Reset(l.patience)
		case <-ctx.Done():
			return ctx.Err()
		case <-l.server.done:
			return l.server.died()
		case <-timer.C:
			l.mu.Lock()
			n := len(ph.seen)
			l.mu.Unlock()
			return fmt.Errorf("%d of %d tasks have no result, and none arrived for %s; last output of batchyard serve:\n%s", ph.n-n, ph.n, l.patience, l.server.log.last())
		}
	}
}

// check reads the whole results topic, in which every task must have exactly one
// result. failures counts results other than SUCCESS.
func (l *load) check(ctx context.Context) (failures int, err error) {
	times := map[string]int{}
	err = l.p.log.Scan(ctx, stream.Results, func(rec *stream.Record) error {
		r, err := task.DecodeResult(rec.Value, rec.Header(task.HeaderContentType))
		if err != nil {
			return fmt.Errorf("reading the result at %s: %w", rec.Position(), err)
		}
		times[r.TaskID]++
		if r.State != task.Success {
			failures++
		}
		return nil
	})
	if err != nil {
		return failures, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrong []string
	for id := range l.asked {
		if times[id] != 1 && len(wrong) < 5 {
			wrong = append(wrong, fmt.Sprintf("%s has %d results", id, times[id]))
		}
	}
	if len(wrong) > 0 || len(times) != l.sent {
		return failures, fmt.Errorf("not every task has exactly one result: %d tasks, %d with results; %s", l.sent, len(times), strings.Join(wrong, ", "))
	}
	return failures, nil
}

// errorOnce keeps the first error.
type errorOnce struct {
	mu  sync.Mutex
	err error
}

func (e *errorOnce) set(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

func (e *errorOnce) get() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}
