package tables

import "sync/atomic"

// index maps keys of rows to what the log says about them, in open addressing: 24 bytes for each row, and at least
// a third more slots than rows. Keys are hashed with a random seed, so that no one can prepare some that collide.
type index struct {
	slots []slot
	n     int
}

type slot struct {
	key     uint64 // 0: empty
	sum     uint64 // of the digest, with the random seed
	version uint32
	seen    uint32 // number of rows that were found
}

const firstSlots = 1 << 10

// at returns the slot of a key; a new one has version 0 and sum 0.
func (x *index) at(key uint64) (s *slot, isNew bool) {
	if 4*x.n >= 3*len(x.slots) {
		x.grow()
	}
	s = find(x.slots, key)
	if s.key == 0 {
		x.n++
		s.key, isNew = key, true
	}
	return s, isNew
}

// get returns the slot of a key; nil if there is none. Any number of goroutines may call it.
func (x *index) get(key uint64) *slot {
	if len(x.slots) == 0 {
		return nil
	}
	if s := find(x.slots, key); s.key != 0 {
		return s
	}
	return nil
}

func find(slots []slot, key uint64) *slot {
	mask := uint64(len(slots) - 1)
	for i := key & mask; ; i = (i + 1) & mask {
		if s := &slots[i]; s.key == key || s.key == 0 {
			return s
		}
	}
}

func (x *index) grow() {
	bigger := make([]slot, max(firstSlots, 2*len(x.slots)))
	for i := range x.slots {
		if s := &x.slots[i]; s.key != 0 {
			*find(bigger, s.key) = *s
		}
	}
	x.slots = bigger
}

// found notes that there is a row of the slot, and reports whether it is the first.
func (s *slot) found() bool { return atomic.AddUint32(&s.seen, 1) == 1 }
