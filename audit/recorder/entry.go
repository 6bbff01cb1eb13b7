package recorder

import (
	"fmt"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/audit/recorder/clean"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// entry is one record: undecoded while it waits in the queue, then what is to be recorded of it
// and what of it becomes a dead letter.
type entry struct {
	rec    records.Finisher // Done: it is recorded, or it never will be by this process
	part   *ownership
	offset int64
	bytes  int64
	at     time.Time // when it was written, by the clock of its writer or of the broker

	refused     error // why the record must not be decoded
	undecoded   bool
	value       []byte
	contentType string // of a result
	framed      int    // number of events, by their frame

	events []indexedEvent
	result *task.Result
	dead   []deadLetter // not sent yet
	hole   *audit.Break // not a record, but what was deleted before it was recorded; its only event says so
}

// holeEntry returns an entry for records that are gone. As one of the queue it becomes a row of the chain
// after those of the records before it, in the transaction that passes the offsets: so no one can deny it.
func holeEntry(rec records.Finisher, part *ownership, hole *audit.Break, instance string) *entry {
	hole.Time, hole.ActorID = clean.Micro(time.Now()).Truncate(time.Millisecond), instance
	return &entry{rec: rec, part: part, offset: hole.Last, at: hole.Time, hole: hole, events: []indexedEvent{{event: eventOf(hole)}}}
}

// indexedEvent is an event and its index in its record, which stays the same when other events of
// the record are taken out.
type indexedEvent struct {
	index int32
	event task.Event
}

// checkedEntry returns an entry for a record of a topic. One that is not ours becomes a dead letter
// when it is decoded, because it could answer a task or add audit rows.
func checkedEntry(rec *stream.Record, part *ownership) *entry {
	e := newEntry(rec, part)
	if err := records.CheckOurs(rec); err != nil {
		e.refused, e.framed = err, 0
	}
	return e
}

// newEntry returns an entry for a record of the topic events or results. It is decoded later, by
// the writer that takes it; see [slab].
func newEntry(rec *stream.Record, part *ownership) *entry {
	e := &entry{rec: rec, part: part, offset: rec.Offset, bytes: int64(len(rec.Value)), at: rec.Time}
	if rec.Topic == stream.Events {
		e.holdEvents(rec.Value)
	} else {
		e.holdResult(rec.Value, rec.Header(wire.HeaderContentType))
	}
	return e
}

// holdEvents keeps the value of a record of the topic events.
func (e *entry) holdEvents(value []byte) {
	e.undecoded, e.value, e.framed = true, value, wire.CountEvents(value)
}

// holdResult keeps the value of a record of the topic results.
func (e *entry) holdResult(value []byte, contentType string) {
	e.undecoded, e.value, e.contentType = true, value, contentType
}

// source returns what the row made from the event with that index comes from.
func (e *entry) source(index int32) audit.Source {
	return e.part.At(audit.Position{Offset: e.offset, Index: index})
}

// rows returns how many audit rows the entry makes at most. It does not change.
func (e *entry) rows() int { return max(e.framed, 1) }

// decodeEvents decodes the events into room. Those that cannot be recorded become dead letters of
// their own, so that replaying one does not repeat the others.
func (e *entry) decodeEvents(room []indexedEvent) {
	if e.refuse() {
		return
	}
	e.events = room
	err := wire.DecodeEvents(e.value, func(i, _ int) *task.Event {
		e.events[i].index = int32(i) //nolint:gosec // at most task.MaxFrameEvents
		return &e.events[i].event
	})
	if err != nil {
		e.events = nil
		e.dead = append(e.dead, deadLetter{entry: e, reason: records.ReasonUnreadable, cause: err})
		return
	}
	kept := 0
	for i := range e.events {
		it := &e.events[i]
		if err := clean.Event(&it.event, e.at); err != nil {
			e.dead = append(e.dead, deadLetter{entry: e, reason: records.ReasonInvalid, cause: fmt.Errorf("event %d: %w", i, err), events: []task.Event{it.event}})
			continue
		}
		if kept != i {
			e.events[kept] = *it
		}
		kept++
	}
	clear(e.events[kept:]) // the dead letters hold copies
	e.events = e.events[:kept]
}

// refuse makes a record that must not be decoded a dead letter, and reports whether it is one.
func (e *entry) refuse() bool {
	if e.refused != nil {
		e.dead = append(e.dead, deadLetter{entry: e, reason: records.ReasonOf(e.refused, records.ReasonUnreadable), cause: e.refused})
	}
	return e.refused != nil
}

// decodeResult decodes the result.
func (e *entry) decodeResult() {
	if e.refuse() {
		return
	}
	r, err := wire.DecodeResult(e.value, e.contentType)
	reason := records.ReasonUnreadable
	if err == nil {
		reason = records.ReasonInvalid
		err = clean.Result(r, e.at)
	}
	if err != nil {
		e.dead = append(e.dead, deadLetter{entry: e, reason: reason, cause: err})
		return
	}
	e.result = r
}
