// Package budget bounds what one consumer has fetched and not finished, so that one partition
// that is stuck cannot starve the others.
package budget

import (
	"context"
	"sync"
)

// Budget bounds the records and bytes that one consumer has fetched and not finished. A part of it
// is reserved in equal shares for the partitions; the rest is first come, first served. So
// a partition whose records are never done holds at most the common rest and its own share.
type Budget struct {
	mu         sync.Mutex
	maxRecords int64
	maxBytes   int64
	reserved   float64 // part that is divided among the partitions
	shares     map[*Share]struct{}
	ownRecords int64 // reserved for each partition
	ownBytes   int64
	records    int64 // held by all partitions
	bytes      int64
	common     struct{ records, bytes int64 } // of those, beyond the shares
	waiters    int                            // partitions that wait for room
}

// Share is what one partition holds. Under budget.mu.
type Share struct {
	records, bytes int64
	waiting        chan struct{} // closed when there may be room again
	gone           bool
}

// New returns a budget of records and bytes, shared by the partitions that join. The part reserved is
// divided among them.
func New(maxRecords int, maxBytes int64, reserved float64) *Budget {
	return &Budget{maxRecords: int64(maxRecords), maxBytes: maxBytes, reserved: reserved, shares: map[*Share]struct{}{}}
}

// Join gives a partition its share. The other shares shrink, and what their partitions hold
// beyond them counts as common from now on.
func (b *Budget) Join(s *Share) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shares[s] = struct{}{}
	b.resize()
}

// Leave takes everything back from a partition, including its records in flight.
func (b *Budget) Leave(s *Share) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	delete(b.shares, s)
	if s.waiting != nil {
		close(s.waiting)
		s.waiting = nil
		b.waiters--
	}
	b.records -= s.records
	b.bytes -= s.bytes
	b.resize()
	b.wakeAll()
}

func (b *Budget) resize() {
	part := b.reserved / float64(max(1, len(b.shares)))
	b.ownRecords = max(1, int64(part*float64(b.maxRecords)))
	b.ownBytes = max(1, int64(part*float64(b.maxBytes)))
	b.common.records, b.common.bytes = 0, 0
	for s := range b.shares {
		b.common.records += max(0, s.records-b.ownRecords)
		b.common.bytes += max(0, s.bytes-b.ownBytes)
	}
}

// roomRecords returns how many more records the partition may hold.
func (b *Budget) roomRecords(s *Share) int64 {
	free := b.maxRecords - b.ownRecords*int64(len(b.shares)) - b.common.records
	return max(0, b.ownRecords-s.records) + max(0, free)
}

func (b *Budget) roomBytes(s *Share) int64 {
	free := b.maxBytes - b.ownBytes*int64(len(b.shares)) - b.common.bytes
	return max(0, b.ownBytes-s.bytes) + max(0, free)
}

func (b *Budget) change(s *Share, records, bytes int64) {
	b.common.records -= max(0, s.records-b.ownRecords)
	b.common.bytes -= max(0, s.bytes-b.ownBytes)
	s.records += records
	s.bytes += bytes
	b.records += records
	b.bytes += bytes
	b.common.records += max(0, s.records-b.ownRecords)
	b.common.bytes += max(0, s.bytes-b.ownBytes)
}

// TakeBytes waits until there is room for a useful number of bytes, reserves up to want, and
// returns how many.
func (b *Budget) TakeBytes(ctx context.Context, s *Share, want int64) (int64, error) {
	for {
		b.mu.Lock()
		least := min(want, max(1, b.ownBytes/2))
		if room := b.roomBytes(s); room >= least && b.roomRecords(s) > 0 {
			n := min(want, room)
			b.change(s, 0, n)
			b.mu.Unlock()
			return n, nil
		}
		wait := b.wait(s)
		b.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// AdjustBytes adds to what the partition holds, or gives back if negative. It may exceed the
// budget, because a record larger than the whole budget has to be read too.
func (b *Budget) AdjustBytes(s *Share, by int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.gone {
		return
	}
	b.change(s, 0, by)
	if by < 0 {
		b.wakeAll()
	}
}

// Add adds to what the partition holds, without waiting for room.
func (b *Budget) Add(s *Share, records, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.gone {
		b.change(s, records, bytes)
	}
}

// TakeRecords waits until there is room for a record, reserves up to want, and returns how many.
func (b *Budget) TakeRecords(ctx context.Context, s *Share, want int) (int, error) {
	for {
		b.mu.Lock()
		if room := b.roomRecords(s); room > 0 {
			n := min(int64(want), room)
			b.change(s, n, 0)
			b.mu.Unlock()
			return int(n), nil
		}
		wait := b.wait(s)
		b.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Release gives back the share of a finished record.
func (b *Budget) Release(s *Share, records, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.gone {
		return
	}
	b.change(s, -records, -bytes)
	b.wakeAll()
}

func (b *Budget) wait(s *Share) chan struct{} {
	if s.waiting == nil {
		s.waiting = make(chan struct{})
		b.waiters++
	}
	return s.waiting
}

// wakeAll makes the waiters check again. There is at most one per partition, and only when the
// budget is used up.
func (b *Budget) wakeAll() {
	if b.waiters == 0 {
		return
	}
	b.waiters = 0
	for s := range b.shares {
		if s.waiting != nil {
			close(s.waiting)
			s.waiting = nil
		}
	}
}

// Held returns what all partitions hold.
func (b *Budget) Held() (records, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records, b.bytes
}
