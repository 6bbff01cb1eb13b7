// Package tracker keeps what of a partition is finished, and therefore what may be committed. Records may
// finish in any order; an offset is committed only when every one below it is finished.
package tracker

import (
	"time"

	"github.com/batchyard/batchyard/stream/internal/offsets"
)

// Tracker knows which offsets of a partition are not finished. Memory grows by one bit per offset since
// the lowest of them. Its caller locks.
type Tracker struct {
	topic        string         // id of the topic that the offsets belong to; empty: unknown
	started      bool           // the first offset is known
	next         int64          // every offset below was handed out or skipped
	pending      Set            // offsets below next that are not finished
	inherited    []offsets.Span // finished above next, from the last owner's commit
	highest      int64          // one above the highest finished offset
	named        int64          // the last commit names what is finished below this offset
	dirty        bool           // something finished since the last commit was prepared
	committed    int64          // acknowledged by the broker; -1 before the first commit
	omitMetadata bool           // the broker refuses metadata of this length
	reported     int64          // the straggler that was reported last
	reportedAt   time.Time
	handed       mark // what was handed out by some time: see Oldest
	readable     mark // what could be read at some time: see Unread
}

// mark is a time, and the offset below which everything was there by then.
type mark struct {
	offset int64
	at     time.Time
}

// New returns a tracker; Begin starts it.
func New() Tracker { return Tracker{committed: -1} }

// Begin sets the offset at which reading starts, and what is finished above it.
func (t *Tracker) Begin(next int64, skip []offsets.Span, topic string) {
	t.started, t.topic = true, topic
	t.next, t.highest, t.inherited = next, next, skip
	t.dropPassedSpans()
}

// Started reports whether the first offset is known.
func (t *Tracker) Started() bool { return t.started }

// Next returns the offset below which every record was handed out or skipped.
func (t *Tracker) Next() int64 { return t.next }

// StartOver continues at next in a topic that was recreated. Nothing of the old one is committed.
func (t *Tracker) StartOver(next int64, topic string) {
	t.Clear()
	t.next, t.highest, t.named, t.committed, t.topic = next, next, next, -1, topic
	t.dirty = true
}

// Clear forgets what is not finished.
func (t *Tracker) Clear() { t.pending, t.inherited = Set{}, nil }

// Topic returns the id of the topic, "" if it is unknown, and takes one that becomes known.
func (t *Tracker) Topic(id string) (old string) {
	if old = t.topic; old == "" {
		t.topic = id
	}
	return old
}

// Add notes that the record at an offset is handed out. Offsets between it and the last one do not exist
// (compacted, control records) or are finished.
func (t *Tracker) Add(offset int64) {
	t.pending.Add(offset)
	t.next = offset + 1
}

// Advance notes that there is nothing more to hand out below next.
func (t *Tracker) Advance(next int64) {
	if next > t.next {
		t.next = next
		t.dirty = t.dirty || t.pending.Len() == 0
	}
	t.dropPassedSpans()
}

func (t *Tracker) dropPassedSpans() {
	for len(t.inherited) > 0 && t.inherited[0].First <= t.next {
		t.next = max(t.next, t.inherited[0].End)
		t.inherited = t.inherited[1:]
	}
	t.highest = max(t.highest, t.Lowest())
}

// NextUnfinished returns the offset itself, or the end of the span that the last owner had finished
// around it.
func (t *Tracker) NextUnfinished(offset int64) int64 {
	for _, s := range t.inherited {
		if offset >= s.First && offset < s.End {
			return s.End
		}
	}
	return offset
}

// Inherited returns what the last owner had finished, of what is still to be read. The caller must not
// change it.
func (t *Tracker) Inherited() []offsets.Span { return t.inherited }

// Finish notes that a record is finished.
func (t *Tracker) Finish(offset int64) {
	t.pending.Remove(offset)
	t.highest = max(t.highest, offset+1)
	t.dirty = true
}

// Lowest returns the lowest offset that is not finished.
func (t *Tracker) Lowest() int64 {
	if lowest, ok := t.pending.Next(0); ok {
		return lowest
	}
	return t.next
}

// Commit returns what to commit; false when nothing changed since the last time.
func (t *Tracker) Commit() (offset int64, metadata string, ok bool) {
	if !t.started || !t.dirty {
		return 0, "", false
	}
	t.dirty = false
	offset = t.Lowest()
	t.named = offset
	if !t.omitMetadata {
		spans := t.Finished()
		text, named := offsets.Encode(offset, spans, offsets.MaxMetadata-len(offsets.OfTopic(t.topic, "")))
		metadata = offsets.OfTopic(t.topic, text)
		if t.named = t.highest; named < len(spans) {
			t.named = spans[named].First
		}
	}
	return offset, metadata, true
}

// Finished returns the finished spans above the lowest unfinished offset: as many as might fit into a
// commit, and then those of the last owner.
func (t *Tracker) Finished() []offsets.Span {
	const most = offsets.MaxMetadata / 2 // a span takes more than two bytes
	spans := t.pending.Gaps(t.Lowest(), t.next, most)
	for _, s := range t.inherited {
		if n := len(spans); n > 0 && spans[n-1].End == s.First {
			spans[n-1].End = s.End
		} else {
			spans = append(spans, s)
		}
	}
	return spans
}

// Acked notes that the broker has a commit.
func (t *Tracker) Acked(offset int64) { t.committed = offset }

// Failed makes the next commit try again.
func (t *Tracker) Failed() { t.dirty = true }

// Again makes the next commit repeat the offset even if nothing has moved since the last one.
func (t *Tracker) Again() { t.dirty = t.dirty || t.committed >= 0 }

// OmitMetadata commits without metadata from now on.
func (t *Tracker) OmitMetadata() { t.omitMetadata = true }

// reportAgain is when a straggler is reported again that is still there.
const reportAgain = time.Second

// Straggler returns how far the lowest unfinished record lags behind the highest finished one. report says
// that more than maxSpread offsets are beyond what the commit's metadata can name because of it, so that the
// next owner would process what is finished there again.
func (t *Tracker) Straggler(maxSpread int64, now time.Time) (offset, spread int64, report bool) {
	if t.pending.Len() == 0 {
		return 0, 0, false
	}
	offset = t.Lowest()
	spread = t.highest - offset
	if t.highest-max(t.named, offset) <= maxSpread || t.reported == offset && now.Sub(t.reportedAt) < reportAgain {
		return offset, spread, false
	}
	t.reported, t.reportedAt = offset, now
	return offset, spread, true
}

// Oldest returns the lowest unfinished offset and a time by which it had been handed out; false if everything is
// finished. It is asked regularly: the time is that of the last question at which everything that had been
// handed out before was finished, so a partition that moves has a recent one.
func (t *Tracker) Oldest(now time.Time) (offset int64, since time.Time, ok bool) {
	offset = t.Lowest()
	if t.handed.at.IsZero() || offset >= t.handed.offset {
		t.handed = mark{t.next, now}
	}
	return offset, t.handed.at, t.pending.Len() > 0
}

// Unread returns since when, at least, there has been something to read below end that was not handed out; false if
// there is not. It is asked regularly, too.
func (t *Tracker) Unread(end int64, now time.Time) (since time.Time, ok bool) {
	if t.readable.at.IsZero() || t.next >= t.readable.offset {
		t.readable = mark{end, now}
	}
	return t.readable.at, t.started && t.next < end
}
