// Package trouble logs what fails at present, once for each problem.
package trouble

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Trouble is the operations of one consumer that fail now. It may be used from any goroutine.
type Trouble struct {
	logger *slog.Logger
	gauge  prometheus.Gauge

	mu      sync.Mutex
	failing map[string]struct{}
}

// New returns one that sets the gauge to 1 while anything fails.
func New(logger *slog.Logger, gauge prometheus.Gauge) *Trouble {
	return &Trouble{logger: logger, gauge: gauge, failing: map[string]struct{}{}}
}

// Report notes that an operation fails (err) or works again (nil). It logs the first of several concurrent
// problems, and the end of the last.
func (t *Trouble) Report(what string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := len(t.failing)
	if err != nil {
		t.failing[what] = struct{}{}
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
