package plain

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/batchyard/batchyard/api/openai/envelope"
	"github.com/batchyard/batchyard/producer"
	"github.com/batchyard/batchyard/status/arrivals"
	"github.com/batchyard/batchyard/task"
)

// Why a wait ended without a result.
var (
	errGone     = errors.New("the client is gone")
	errLate     = errors.New("the time is over")
	errStopping = errors.New("the server stops")
	errFinished = errors.New("the task has finished before")
)

// grace is how long after its deadline a task may take to end by itself.
const grace = 500 * time.Millisecond

// serve returns the handler of an endpoint of devices.
func (s *Server) serve(endpoint string) Handler {
	return func(w http.ResponseWriter, r *http.Request, who Caller) Ended {
		if !s.waiting.TryAcquire(1) {
			return refuse(w, envelope.Later(http.StatusTooManyRequests, "too_many_requests",
				"too many requests wait for their answers already; send this one again in a moment, or submit a batch"))
		}
		s.deps.Metrics.Waiting.Inc()
		defer func() { // in this order: what is not counted any more has left room
			s.waiting.Release(1)
			s.deps.Metrics.Waiting.Dec()
		}()
		q, err := s.read(w, r, endpoint, who)
		if err == nil {
			err = s.models.check(r.Context(), q.task.Model)
		}
		if err != nil {
			q.release()
			return refuse(w, err)
		}
		return s.run(w, r, q, who)
	}
}

// run makes a request a task, and answers with its result.
func (s *Server) run(w http.ResponseWriter, r *http.Request, q *asked, who Caller) Ended {
	key := q.task.Key()
	s.join(key)
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	late := time.AfterFunc(q.timeout+grace, func() { end(errLate) })
	defer late.Stop()
	w.Header().Set(HeaderTask, key.ID)
	current, res, err := s.result(ctx, q, who)
	last := s.leave(key)
	switch {
	case err == nil:
		s.answer(w, q, res)
		return Ended{Accepted: true}
	case errors.Is(err, errGone):
		if last {
			s.cancel(ctx, current, who)
		}
		return Ended{Accepted: true}
	case errors.Is(err, errLate):
		if last {
			s.cancel(ctx, current, who)
		}
		expired(q.timeout).Write(w)
		return Ended{Accepted: true}
	case errors.Is(err, errStopping):
		if last && !q.keyed { // the next request under the key gets the answer
			s.cancel(ctx, current, who)
		}
		envelope.Later(http.StatusServiceUnavailable, "server_stopping", "the server stops; send the request again").Write(w)
		return Ended{Accepted: true}
	}
	w.Header().Del(HeaderTask)
	if e := asError(err); e.Status == http.StatusServiceUnavailable {
		s.deps.Logger.Warn("a plain request failed", "trace_id", who.Trace, "error", err)
	}
	return refuse(w, err)
}

// submitted is a task on its way to Kafka.
type submitted struct {
	task *task.Task // not to be read before done
	run  task.Run
	old  bool // an earlier request may have submitted it, and its result may be there already
	done chan struct{}

	state task.State // that it is in; set before done is closed
	err   error
}

// submit calls write, which writes the task, and does not end with the request: a cancel has to know whether there is
// anything to cancel.
func (s *Server) submit(ctx context.Context, q *asked, run task.Run, write func(context.Context) (task.State, error)) *submitted {
	p := &submitted{task: q.task, run: run, old: q.keyed, done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Submit)
	go func() {
		defer cancel()
		defer close(p.done)
		p.state, p.err = write(ctx)
		q.task.Input = nil
		q.release()
	}()
	return p
}

// result returns what became of a request, and the task that was submitted last.
func (s *Server) result(ctx context.Context, q *asked, who Caller) (*submitted, *task.Result, error) {
	q.task.Normalize(q.task.Deadline.Add(-q.timeout))
	print, run := q.task.Fingerprint(), q.task.Run()
	heard := s.expect(ctx, run, print)
	defer heard.Close()
	p := s.submit(ctx, q, run, func(ctx context.Context) (task.State, error) {
		if !q.keyed {
			return task.Pending, s.deps.Producer.AcceptNew(ctx, q.task, who.Origin)
		}
		states, err := s.deps.Producer.Accept(ctx, []*task.Task{q.task}, who.Origin)
		if err != nil {
			return "", err
		}
		return states[0], nil
	})
	res, err := s.await(ctx, p, heard)
	if !errors.Is(err, errFinished) {
		return p, res, err
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.Query)
	defer cancel()
	row, err := s.deps.Store.Task(qctx, run.Key)
	switch {
	case err != nil:
		return p, nil, err
	case row.State == task.Cancelled || row.State == task.Expired: // no answer: the client left, or waited in vain
		return s.again(ctx, q, print, who)
	case !row.State.Terminal() || row.Result == nil: // another request under the key runs it again
		run.Generation = row.Generation
		p = &submitted{task: q.task, run: run, old: true, done: always}
		heard := s.expect(ctx, run, print)
		defer heard.Close()
		res, err := s.await(ctx, p, heard)
		return p, res, err
	}
	return p, row.Result, nil
}

// again runs a task again that has ended without an answer.
func (s *Server) again(ctx context.Context, q *asked, print task.Fingerprint, who Caller) (*submitted, *task.Result, error) {
	key := q.task.Key()
	qctx, cancel := context.WithTimeout(ctx, s.cfg.Query)
	defer cancel()
	known, err := s.deps.Store.Known(qctx, []task.Key{key})
	if err != nil {
		return nil, nil, err
	}
	places, err := s.deps.Store.Records(qctx, key)
	if err != nil {
		return nil, nil, err
	}
	retry := producer.Retry{Key: key, Generation: known[0].Generation + 1, Fingerprint: print, Reason: "the request was sent again under its Idempotency-Key"}
	for _, p := range places {
		retry.Records = append(retry.Records, producer.Position(p))
	}
	run := task.Run{Key: key, Generation: retry.Generation}
	heard := s.expect(ctx, run, print)
	defer heard.Close()
	p := s.submit(ctx, q, run, func(ctx context.Context) (task.State, error) {
		return task.Pending, s.deps.Producer.Retry(ctx, retry, who.Origin)
	})
	res, err := s.await(ctx, p, heard)
	return p, res, err
}

// expectWithin bounds the wait for Kafka to say where a partition ends.
const expectWithin = time.Second

// hearing is an arrival, or nothing where there are none.
type hearing interface {
	Result() <-chan *task.Result
	Unsure() <-chan struct{}
	Close()
}

func (s *Server) expect(ctx context.Context, run task.Run, print task.Fingerprint) hearing {
	if s.deps.Arrivals == nil {
		return deaf{}
	}
	ctx, cancel := context.WithTimeout(ctx, expectWithin)
	defer cancel()
	return s.deps.Arrivals.Expect(ctx, run, print)
}

// deaf hears nothing.
type deaf struct{}

func (deaf) Result() <-chan *task.Result { return nil }
func (deaf) Unsure() <-chan struct{}     { return always }
func (deaf) Close()                      {}

var always = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

var _ hearing = (*arrivals.Arrival)(nil)

// await waits for the result of a task. It hears of it, or after a while finds it in Postgres.
func (s *Server) await(ctx context.Context, p *submitted, heard hearing) (*task.Result, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	lookUp := time.NewTimer(s.cfg.LookUp)
	defer lookUp.Stop()
	stored := make(chan *task.Result, 1)
	done, unsure, stopping := p.done, heard.Unsure(), s.deps.Stopping
	for looking := false; ; {
		ask := false
		select {
		case <-done:
			switch done = nil; {
			case p.err != nil:
				return nil, p.err
			case p.state.Terminal():
				return nil, errFinished
			}
			ask = p.old
		case res := <-heard.Result():
			s.deps.Metrics.Answers.WithLabelValues("kafka").Inc()
			return res, nil
		case res := <-stored:
			s.deps.Metrics.Answers.WithLabelValues("postgres").Inc()
			return res, nil
		case <-unsure:
			ask, unsure = true, nil
		case <-lookUp.C:
			ask = true
		case <-stopping:
			stopping = nil
			last := time.AfterFunc(s.cfg.LastWait, func() { end(errStopping) })
			defer last.Stop()
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, errLate) || errors.Is(cause, errStopping) {
				return nil, cause
			}
			return nil, errGone
		}
		if ask && !looking {
			looking = true
			go s.lookUp(ctx, p.run, stored)
		}
	}
}

// lookUp waits until Postgres has the result of a task, however often Postgres fails to answer.
func (s *Server) lookUp(ctx context.Context, run task.Run, found chan<- *task.Result) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		row, err := s.deps.Store.WaitTask(ctx, run)
		if err == nil && row.Result != nil {
			found <- row.Result // it has room
			return
		}
		pause.Reset(s.cfg.LookUp)
	}
}

// cancel ends a task that no one waits for any more.
func (s *Server) cancel(ctx context.Context, p *submitted, who Caller) {
	if p == nil {
		return
	}
	<-p.done // within the time limit for a submit
	if p.err != nil || p.state.Terminal() {
		return
	}
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Submit)
	defer end()
	recent := producer.RecentOf(p.task)
	recent.Generation = p.run.Generation
	if err := s.deps.Producer.Cancel(ctx, &recent, who.Origin); err != nil {
		s.deps.Logger.Warn("cancelling the task of a client that is gone failed; it runs until its deadline", "tenant", p.run.Tenant, "task_id", p.run.ID, "error", err)
	}
}
