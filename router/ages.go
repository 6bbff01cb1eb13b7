package router

import (
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

// writtenAt is when a record was written; false if it has no time, because Kafka refused that of its writer.
func writtenAt(rec *stream.Record) (time.Time, bool) {
	return rec.Time, !rec.Time.IsZero() && rec.Time.UnixMilli() > 0
}

// note takes the first of the records that were read. One without a time was written now, at the latest.
func (a *ages) note(rec *stream.Record, now time.Time) {
	o := rec.Ownership()
	if o == nil || rec.Recalled() != nil {
		return
	}
	at, ok := writtenAt(rec)
	if !ok {
		at = now
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	ms := a.marks[o]
	if n := len(ms); n > 0 && (rec.Offset <= ms[n-1].offset || at.Before(ms[n-1].at.Add(markEvery))) { // or it is handed out again
		return
	}
	if len(ms) == maxMarks { // forget every other one: what follows it then counts as older than it is
		for i := range maxMarks / 2 {
			ms[i] = ms[2*i]
		}
		ms = ms[:maxMarks/2]
	}
	a.marks[o] = append(ms, mark{rec.Topic, rec.Offset, at})
}

// oldBelow returns the offset below which an owner's records have been in the log for half of its retention.
func (a *ages) oldBelow(owner decide.Owner, retention func(topic string) time.Duration, now time.Time) int64 {
	o, ok := owner.(*stream.Ownership)
	if !ok {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	below := int64(0)
	for i, m := range a.marks[o] {
		if keep := retention(m.topic); keep <= 0 || now.Sub(m.at) < keep/2 {
			break
		}
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
