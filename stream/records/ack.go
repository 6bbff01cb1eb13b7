package records

import "sync/atomic"

// Finisher is a record as an [Ack] sees it; a *[Record] is one.
type Finisher interface {
	Done()      // allows the offset to be committed
	Lost() bool // the partition belongs to another process now
}

// Ack counts what a record became. The record is done, and its offset may be committed, once
// all of that is acknowledged. If the process dies before, the record is read again.
// An Ack may be used by several goroutines, except that [Ack.Carry] must not run beside
// the last Release.
type Ack struct {
	Record  Finisher
	open    atomic.Int32
	carried []*Ack
}

// NewAck returns the count of a record that became n things, each of which needs a Release.
func NewAck(rec Finisher, n int) *Ack {
	a := &Ack{Record: rec}
	a.open.Store(int32(n)) //nolint:gosec // a record holds thousands of entries at most
	return a
}

// Hold adds one thing to wait for.
func (a *Ack) Hold() { a.open.Add(1) }

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

// Lost reports whether another process reads the record again, so that working on it is wasted.
func (a *Ack) Lost() bool { return a.Record.Lost() }
