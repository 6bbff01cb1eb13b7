package workers

import (
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/batchyard/batchyard/task"
)

// Failure is why an attempt did not succeed.
type Failure struct {
	Class      task.ErrorClass
	Status     int // HTTP status; 0: there was no answer
	Message    string
	Body       []byte        // the device's JSON answer, for a task's own fault
	RetryAfter time.Duration // asked for by the device
}

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
	LocalAttempts int // on this device
}

// Decide says what follows a failed attempt. All rules about retries are here; they depend only on the
// arguments, and jitter. A task past its deadline, or an attempt that ended because it was cancelled or the
// worker is stopping, does not come here. Decide may take a retry from the budget.
//
//	class                     retry here     retry elsewhere      counts
//	invalid, internal         –              –  (FAILED)          –
//	expired                   –              –  (EXPIRED)         –
//	auth                      –              yes, not here        yes
//	throttled (429)           –              yes, with backoff    no
//	breaker open              –              yes, with backoff    no
//	draining                  –              yes                  no
//	device, connect, timeout  local_retries  yes, not here        yes
//
// When the attempts that count are used up, the task degrades to a smaller model if it allows that
// and one is configured, else it is FAILED. The number of all attempts is bounded too, so that
// endless 429s end.
func Decide(cfg Config, in Situation, budget *Budget, now time.Time) Decision {
	t, attempts, f := in.Task, in.Attempts, in.Failure
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
	if f.Class == task.ClassInvalid || f.Class == task.ClassInternal {
		return Decision{Action: Fail}
	}
	if f.Class == task.ClassExpired {
		return Decision{Action: Expire}
	}
	usedUp := counted >= most || len(attempts) >= 4*task.MaxAttemptsLimit
	switch {
	case usedUp && t.Degrade && cfg.Fallback[t.Model] != "":
		return Decision{Action: Degrade, Model: cfg.Fallback[t.Model]}
	case usedUp:
		return Decision{Action: Fail}
	}
	d := Decision{Action: RetryElsewhere, After: cfg.backoff(max(1, counted))}
	switch f.Class {
	case task.ClassThrottled:
		d.After = max(cfg.BackoffMin, min(f.RetryAfter, cfg.BackoffMax))
		if f.RetryAfter == 0 {
			d.After = cfg.backoff(min(len(attempts), 8))
		}
	case task.ClassBreakerOpen: // a router that does not know yet would send it here again at once
		d.After = cfg.backoff(1)
	case task.ClassDraining:
		d.After = 0
	case task.ClassAuth:
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

// Counts reports whether an attempt that failed with the class counts against the task's attempts.
func Counts(c task.ErrorClass) bool {
	switch c {
	case task.ClassThrottled, task.ClassBreakerOpen, task.ClassDraining, task.ClassCancelled:
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
