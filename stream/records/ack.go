package records

import "sync/atomic"

// Finisher is a record that can be finished; a *[Record] is one.
type Finisher interface {
	Done()      // allows the offset to be committed
	Lost() bool // the partition belongs to another process now
}

// Source is a record as an [Ack] sees it; a *[Record] is one.
type Source interface {
	Finisher
	Again(err error) // makes the stage get the record again: see [stream.Record.Again]
}

// Ack counts what a record became. The record is done, and its offset may be committed, once
// all of that is acknowledged. If the process dies before, the record is read again.
// An Ack may be used by several goroutines, except that [Ack.Carry] must not run beside
// the last Release.
type Ack struct {
	Record  Source
	open    atomic.Int32
	carried []*Ack
}

// NewAck returns the count of a record that became n things, each of which needs a Release.
func NewAck(rec Source, n int) *Ack {
	a := &Ack{Record: rec}
	a.open.Store(int32(n)) //nolint:gosec // a record holds thousands of entries at most
	return a
}

// Hold adds one thing to wait for.
func (a *Ack) Hold() { a.open.Add(1) }

// Open is how many things the record still waits for.
func (a *Ack) Open() int { return int(a.open.Load()) }

// Carry makes the last Release of a release other once, too: the other record holds the same task
// again, and is done when this one is.
func (a *Ack) Carry(other *Ack) { a.carried = append(a.carried, other) }

// Release reports that one thing is acknowledged; the last one finishes the record.
func (a *Ack) Release() {
	if a.open.Add(-1) != 0 {
		return
	}
	a.Record.Done()
	for _, other := range a.carried {
		other.Release()
	}
}

// Refused reports that something that the record became will never be acknowledged, for the error. The
// stage gets the record again, and those that it carries: otherwise its task would stand still until this
// process ends.
func (a *Ack) Refused(err error) {
	a.Record.Again(err)
	for _, other := range a.carried {
		other.Refused(err)
	}
}

// Lost reports whether another process reads the record again, so that working on it is wasted.
func (a *Ack) Lost() bool { return a.Record.Lost() }
