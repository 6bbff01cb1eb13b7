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

// What can follow.
const (
	Fail    Action = iota // the task ends FAILED
	Again                 // here, after a pause
	Reroute               // back to its topic: another device, or this one later
	Degrade               // back to its topic with a smaller model
	Expire                // the task ends EXPIRED
)

// Decision is what follows a failure, and how.
type Decision struct {
	Action  Action
	After   time.Duration // pause before the next attempt
	Exclude bool          // this device is not to be tried again
	Model   string        // to degrade to
	Late    bool          // put off because retries would become the load
}

// Decide says what follows a failure. It is where a retry is decided: all rules
// are here, and it depends on nothing but its arguments (and jitter).
//
//	class                     here again     elsewhere            counts
//	invalid, internal         –              –  (FAILED)          –
//	expired                   –              –  (EXPIRED)         –
//	auth                      –              yes, without this    yes
//	throttled (429)           –              yes, with pause      no
//	breaker open              –              yes, with pause      no
//	draining                  –              yes                  no
//	device, connect, timeout  local_retries  yes, without this    yes
//
// When the attempts that count are used up: a smaller model if the task allows
// it and one is configured, else FAILED. All attempts together are bounded too,
// so that endless 429s end.
func Decide(cfg Config, t *task.Task, attempts []task.Attempt, f Failure, here int, budget *Budget, now time.Time) Decision {
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
	pause := cfg.pause(max(1, counted))
	used := counted >= most || len(attempts) >= 4*task.MaxAttemptsLimit
	switch {
	case used && t.Degrade && cfg.Fallback[t.Model] != "":
		return Decision{Action: Degrade, Model: cfg.Fallback[t.Model]}
	case used:
		return Decision{Action: Fail}
	}
	d := Decision{Action: Reroute, After: pause}
	switch f.Class {
	case task.ClassThrottled:
		d.After = max(cfg.BackoffMin, min(f.RetryAfter, cfg.BackoffMax))
		if f.RetryAfter == 0 {
			d.After = cfg.pause(min(len(attempts), 8))
		}
	case task.ClassBreakerOpen: // the routers may not know of it yet, and would send it here again at once
		d.After = cfg.pause(1)
	case task.ClassDraining:
		d.After = 0
	case task.ClassAuth:
		d.Exclude = true
	default:
		switch {
		case !budget.Take():
			d.After, d.Exclude, d.Late = cfg.BackoffMax, true, true
		case here <= cfg.LocalRetries:
			d.Action = Again
		default:
			d.Exclude = true
		}
	}
	if !t.Deadline.IsZero() && now.Add(d.After).After(t.Deadline) {
		return Decision{Action: Expire}
	}
	return d
}

// Counts reports whether an attempt that failed so is one of the attempts that
// a task has; others are nobody's fault.
func Counts(c task.ErrorClass) bool {
	switch c {
	case task.ClassThrottled, task.ClassBreakerOpen, task.ClassDraining, task.ClassCancelled:
		return false
	}
	return true
}

// pause is the backoff after the n-th failure, n from 1, with jitter.
func (cfg Config) pause(n int) time.Duration {
	b := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(cfg.BackoffMin), backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(0.5), backoff.WithMaxInterval(cfg.BackoffMax), backoff.WithMaxElapsedTime(0))
	d := b.NextBackOff()
	for range min(n, 32) - 1 {
		d = b.NextBackOff()
	}
	return min(d, cfg.BackoffMax)
}

// Budget bounds the retries on a device to a share of its requests: a device
// that fails everything gets few of them, and retries never become the load.
type Budget struct {
	mu     sync.Mutex
	ratio  float64
	tokens float64
}

// budgetReserve is how many retries may come before any request was made.
const budgetReserve = 10

// NewBudget returns a budget of ratio retries a request.
func NewBudget(ratio float64) *Budget { return &Budget{ratio: ratio, tokens: budgetReserve} }

// Earn counts a request.
func (b *Budget) Earn() {
	b.mu.Lock()
	b.tokens = min(b.tokens+b.ratio, max(budgetReserve, 1000*b.ratio))
	b.mu.Unlock()
}

// Take takes one retry from the budget, if there is one.
func (b *Budget) Take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
