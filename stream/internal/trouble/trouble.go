// Package trouble logs what fails at present, once for each problem.
package trouble

import (
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Trouble is the operations of one consumer that fail now. It may be used from any goroutine.
type Trouble struct {
	logger *slog.Logger
	gauge  prometheus.Gauge

	mu      sync.Mutex
	failing map[string]Problem
}

// Problem is an operation that fails.
type Problem struct {
	Operation string
	Since     time.Time
	Err       error // the last one
}

// New returns one that sets the gauge to 1 while anything fails.
func New(logger *slog.Logger, gauge prometheus.Gauge) *Trouble {
	return &Trouble{logger: logger, gauge: gauge, failing: map[string]Problem{}}
}

// Report notes that an operation fails (err) or works again (nil). It logs the first of several concurrent
// problems, and the end of the last.
func (t *Trouble) Report(what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := len(t.failing)
	if err != nil {
		p, ok := t.failing[what]
		if !ok {
			p = Problem{Operation: what, Since: time.Now()}
		}
		p.Err = err
		t.failing[what] = p
	} else {
		delete(t.failing, what)
	}
	switch after := len(t.failing); {
	case before == 0 && after > 0:
		t.gauge.Set(1)
		t.logger.Warn("an operation on Kafka fails; retrying until it works", "operation", what, "error", err)
	case before > 0 && after == 0:
		t.gauge.Set(0)
		t.logger.Info("all operations on Kafka work again")
	case err != nil:
		t.logger.Debug("an operation on Kafka fails", "operation", what, "error", err)
	}
}

// Oldest returns the operation that has failed for longest; false if none fails.
func (t *Trouble) Oldest() (oldest Problem, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.failing {
		if !ok || p.Since.Before(oldest.Since) {
			oldest, ok = p, true
		}
	}
	return oldest, ok
}
