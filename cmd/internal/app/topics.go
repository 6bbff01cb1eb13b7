package app

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// topicInterval is how often the settings of topics are looked at.
const topicInterval = time.Minute

// topicWatch looks at the settings of topics, which operators may change at any time.
type topicWatch struct {
	*App
	known   atomic.Pointer[map[string]stream.TopicSettings] // by topic; nil: the broker has not said yet
	problem atomic.Pointer[string]                          // what is wrong; nil: nothing
	failing bool                                            // the broker did not say the last time
}

func newTopicWatch(a *App) *topicWatch { return &topicWatch{App: a} }

// run looks again and again until ctx ends.
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
		if ctx.Err() == nil && !w.failing {
			w.logger.Warn("cannot check the settings of topics: allow DescribeConfigs. Assuming what was last known, or the configured retention", "error", err)
		}
		w.failing = true
		return
	}
	w.failing = false
	w.known.Store(&topics)
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

// retention returns for how long Kafka keeps the records of a topic, or kafka.retention while that is not
// known; 0: forever.
func (w *topicWatch) retention(topic string) time.Duration {
	if known := w.known.Load(); known != nil {
		if s, ok := (*known)[topic]; ok {
			return max(0, s.Retention)
		}
	}
	return w.cfg.Kafka.Retention
}
