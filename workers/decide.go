package workers

import (
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/workers/verdict"
)

// Failure is why an attempt did not succeed; its row of [verdict.Table] says what that means.
type Failure = verdict.Failure

// Action is what follows a failure.
type Action int

// The actions.
const (
	Fail           Action = iota // the task ends FAILED
	RetryHere                    // on this device, after a backoff
	RetryElsewhere               // back to its topic: for another device, or this one later
	Degrade                      // back to its topic, with a smaller model
	Expire                       // the task ends EXPIRED
)

// Decision is an action and its details.
type Decision struct {
	Action     Action
	After      time.Duration // backoff before the next attempt
	Exclude    bool          // don't try this device again
	Model      string        // to degrade to
	OverBudget bool          // delayed because retries would become the load
}

// Situation is a failed attempt as [Decide] sees it.
type Situation struct {
	Task          *task.Task
	Attempts      []task.Attempt // all of the task, this one included if it was made
	Failure       Failure
	LocalAttempts int  // on this device
	Others        bool // another device could run the task, and has not refused it; needed for refusals only
}

// Decide says what follows a failed attempt. What it means is in [verdict.Table]; the rules here depend
// only on the arguments, and jitter. A task past its deadline, or an attempt that ended because it was
// cancelled or the worker is stopping, does not come here. Decide may take a retry from the budget.
//
//	next         retry here     retry elsewhere
//	Here         local_retries  yes, with backoff, not here
//	Elsewhere    –              yes, with backoff, not here
//	Others       –              yes, until all devices that could run it have refused: FAILED
//	Second       –              yes, until two devices have refused, or all: FAILED
//	Fifth        –              yes, until five devices have refused or declined, or all: FAILED
//	AfterPause   –              yes, with backoff; routers keep the pause
//	Soon         –              yes
//	Never        –              –  (FAILED or EXPIRED)
//
// When the attempts that count are used up, the task degrades to a smaller model if it allows that
// and one is configured, else it is FAILED. So it is when all devices have declined. The number of all
// attempts is bounded too, so that endless pauses end.
func Decide(cfg Config, in Situation, budget *Budget, now time.Time) Decision {
	t, attempts, f, row := in.Task, in.Attempts, &in.Failure, in.Failure.Row()
	most := t.MaxAttempts
	if most == 0 {
		most = cfg.MaxAttempts
	}
	counted := 0
	for _, a := range attempts {
		if a.Model == t.Model && Counts(a.Class) {
			counted++
		}
	}
	end := Decision{Action: Fail}
	switch {
	case f.Kind == verdict.Expired:
		return Decision{Action: Expire}
	case row.Next == verdict.Fifth && len(task.DeclinedBy(t.Model, attempts)) >= 5, row.Next == verdict.Never, row.Next == verdict.Second && (!in.Others || refusals(t, attempts) > 1):
		return end
	}
	if t.Degrade && cfg.Fallback[t.Model] != "" {
		end = Decision{Action: Degrade, Model: cfg.Fallback[t.Model]}
	}
	if counted >= most || len(attempts) >= 4*task.MaxAttemptsLimit || (row.Next == verdict.Others || row.Next == verdict.Fifth) && !in.Others {
		return end
	}
	d := Decision{Action: RetryElsewhere, After: cfg.backoff(max(1, counted))}
	switch row.Next {
	case verdict.AfterPause:
		if d.After = cfg.backoff(min(len(attempts), 8)); f.Pause > 0 { // routers keep a longer one
			d.After = max(cfg.BackoffMin, min(f.Pause, cfg.backoff(1)))
		}
	case verdict.Soon:
		if d.After = 0; f.Kind == verdict.BreakerOpen { // a router that does not know yet would send it here again at once
			d.After = cfg.backoff(1)
		}
	case verdict.Second, verdict.Fifth, verdict.Others: // its attempts say where it need not go
		d.After = 0
	case verdict.Elsewhere:
		d.Exclude = true
	default:
		switch {
		case !budget.Take():
			d.After, d.Exclude, d.OverBudget = cfg.BackoffMax, true, true
		case in.LocalAttempts <= cfg.LocalRetries:
			d.Action = RetryHere
		default:
			d.Exclude = true
		}
	}
	if !t.Deadline.IsZero() && now.Add(d.After).After(t.Deadline) {
		return Decision{Action: Expire}
	}
	return d
}

// refusals returns how many devices have said that the task is invalid.
func refusals(t *task.Task, attempts []task.Attempt) int {
	said := map[string]struct{}{}
	for _, a := range attempts {
		if a.Class == task.ClassInvalid && a.Model == t.Model {
			said[a.DeviceID] = struct{}{}
		}
	}
	return len(said)
}

// Counts reports whether an attempt that failed with the class counts against the task's attempts.
func Counts(c task.ErrorClass) bool {
	switch c {
	case task.ClassThrottled, task.ClassBreakerOpen, task.ClassDraining, task.ClassCancelled, task.ClassDeclined, task.ClassInvalid, task.ClassExpired:
		return false
	}
	return true
}

// backoff returns the backoff after the n-th failure, n from 1, with jitter.
func (cfg Config) backoff(n int) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(cfg.BackoffMin), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0.5), backoff.WithMaxInterval(cfg.BackoffMax), backoff.WithMaxElapsedTime(0))
	d := b.NextBackOff()
	for range min(n, 32) - 1 {
		d = b.NextBackOff()
	}
	return min(d, cfg.BackoffMax)
}

// Budget limits the retries on a device to a share of its requests, so that retries never become the
// load of a device that fails everything. It may be used from any goroutine.
type Budget struct {
	mu     sync.Mutex
	ratio  float64
	tokens float64
}

// budgetReserve is how many retries are allowed before any request was made.
const budgetReserve = 10

// NewBudget returns a budget of ratio retries per request.
func NewBudget(ratio float64) *Budget { return &Budget{ratio: ratio, tokens: budgetReserve} }

// Earn counts a request.
func (b *Budget) Earn() {
	b.mu.Lock()
	b.tokens = min(b.tokens+b.ratio, max(budgetReserve, 1000*b.ratio))
	b.mu.Unlock()
}

// Take takes a retry from the budget. It returns false when there is none.
func (b *Budget) Take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
