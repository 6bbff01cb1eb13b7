package router

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
)

// ages knows roughly when the records of a partition were written, by the times of some of them.
type ages struct {
	mu    sync.Mutex
	marks map[*stream.Ownership][]mark
}

// mark is a record and when it was written.
type mark struct {
	topic  string
	offset int64
	at     time.Time
}

// Marks of a partition are at least so far apart, and at most so many.
const (
	markEvery = 10 * time.Minute
	maxMarks  = 512
)

// note takes the first of the records that were read.
func (a *ages) note(rec *stream.Record) {
	o := rec.Ownership()
	if o == nil || rec.Recalled() != nil || rec.Time.IsZero() {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ms := a.marks[o]
	if n := len(ms); n > 0 && rec.Time.Before(ms[n-1].at.Add(markEvery)) {
		return
	}
	if len(ms) == maxMarks { // forget every other one: what follows it then counts as older than it is
		for i := range maxMarks / 2 {
			ms[i] = ms[2*i]
		}
		ms = ms[:maxMarks/2]
	}
	a.marks[o] = append(ms, mark{rec.Topic, rec.Offset, rec.Time})
}

// oldBelow returns the offset below which an owner's records have been in the log for half of its retention.
func (a *ages) oldBelow(owner decide.Owner, r *retentions, now time.Time) int64 {
	o, ok := owner.(*stream.Ownership)
	if !ok {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	below := int64(0)
	for i, m := range a.marks[o] {
		if !r.isOld(m.topic, m.at, now) {
			break
		}
		below = m.offset + 1
		if i+1 < len(a.marks[o]) { // what lies between may be younger; it is rewritten a little early
			below = a.marks[o][i+1].offset
		} else {
			below = 1<<63 - 1
		}
	}
	return below
}

// olderThan reports whether a record was written before a time.
func (a *ages) olderThan(h holder, at time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := false
	for _, m := range a.marks[h.owner] {
		if m.offset > h.offset {
			break
		}
		old = m.at.Before(at)
	}
	return old
}

// dropLost forgets the partitions that belong to another router now.
func (a *ages) dropLost() {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.marks, func(o *stream.Ownership, _ []mark) bool { return o.Lost() })
}

// retentions knows how long Kafka keeps the records of the tasks topics.
type retentions struct {
	mu      sync.Mutex
	byTopic map[string]time.Duration
	assumed time.Duration // until Kafka has said what it is; 0: forever
}

func newRetentions(assumed time.Duration) *retentions {
	return &retentions{byTopic: map[string]time.Duration{}, assumed: assumed}
}

// of returns the retention of a topic; 0: its records are kept forever.
func (r *retentions) of(topic string) time.Duration {
	if r == nil { // a router without a log
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok := r.byTopic[topic]; ok {
		return d
	}
	return r.assumed
}

// isOld reports whether a record has been in the log for half of its topic's retention.
func (r *retentions) isOld(topic string, written, now time.Time) bool {
	keep := r.of(topic)
	return keep > 0 && now.Sub(written) >= keep/2
}

// retentionRefresh is how often Kafka is asked for the retention: an operator may change it at any time.
const retentionRefresh = time.Minute

// readRetentions asks Kafka for the retention of the tasks topics again and again. If Kafka does not say,
// what it said last counts, or else the configuration.
func (s *scheduler) readRetentions(ctx context.Context) {
	if s.deps.Log == nil {
		return
	}
	tick := time.NewTicker(retentionRefresh)
	defer tick.Stop()
	for failing := false; ; {
		var failed error
		for _, topic := range topics {
			keep, err := s.deps.Log.Retention(ctx, topic)
			if err != nil {
				failed = err
				continue
			}
			s.retentions.mu.Lock()
			s.retentions.byTopic[topic] = keep
			s.retentions.mu.Unlock()
		}
		if failed != nil && !failing && ctx.Err() == nil {
			s.deps.Logger.Warn("cannot ask Kafka for the retention of the tasks topics: assuming what was last known, or configured", "error", failed)
		}
		failing = failed != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
