package app

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// topicInterval is how often the settings of topics are looked at.
const topicInterval = 10 * time.Minute

// topicWatch looks at the settings of topics, which operators may change at any time.
type topicWatch struct {
	*App
	tasks   atomic.Int64           // retention of tasks
	problem atomic.Pointer[string] // what is wrong; nil: nothing
}

func newTopicWatch(a *App) *topicWatch {
	w := &topicWatch{App: a}
	w.tasks.Store(int64(a.cfg.Kafka.Retention))
	return w
}

// run looks every few minutes until ctx ends.
func (w *topicWatch) run(ctx context.Context) {
	tick := time.NewTicker(topicInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.check(ctx)
		}
	}
}

// check looks once. If the broker does not say, which takes a permission, what was known stays.
func (w *topicWatch) check(ctx context.Context) {
	topics, err := w.Log.Settings(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.logger.Warn("cannot check the settings of topics: allow DescribeConfigs", "error", err)
		}
		return
	}
	w.tasks.Store(int64(stream.KeptFor(topics)))
	var now *string
	if err := w.Log.CheckSettings(topics); err != nil {
		text := strings.ReplaceAll(err.Error(), "\n", "; ")
		now = &text
		w.metrics.Stream.WrongSettings.Set(float64(strings.Count(err.Error(), "\n") + 1))
	} else {
		w.metrics.Stream.WrongSettings.Set(0)
	}
	if before := w.problem.Swap(now); now != nil && (before == nil || *before != *now) {
		w.logger.Error("with these settings, Kafka may delete what was accepted before it has ended", "problem", *now)
	}
}

// note says what is wrong; empty: nothing.
func (w *topicWatch) note() string {
	if p := w.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// kept returns the retention of tasks; 0: they are kept forever.
func (w *topicWatch) kept() time.Duration { return max(0, time.Duration(w.tasks.Load())) }
