package fleet

import (
	"sync"

	"github.com/cespare/xxhash/v2"
)

// seen counts how often each task key was run. It stores hashes of the keys in two
// generations: when the young one is full, it replaces the old one. The latest
// `limit` keys, at least, are counted exactly.
type seen struct {
	limit int

	mu         sync.Mutex
	young, old map[uint64]uint32
}

func newSeen(limit int) *seen {
	return &seen{limit: limit, young: make(map[uint64]uint32)}
}

func (s *seen) add(key string) {
	if s.limit == 0 || key == "" {
		return
	}
	h := xxhash.Sum64String(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.young[h]; ok {
		s.young[h] = n + 1
		return
	}
	if len(s.young) >= s.limit {
		s.old, s.young = s.young, make(map[uint64]uint32)
	}
	s.young[h] = s.old[h] + 1 // a key that is used again moves to the young generation
	delete(s.old, h)
}

func (s *seen) count(key string) int {
	h := xxhash.Sum64String(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.young[h] + s.old[h])
}
