package learn

import (
	"sync"

	"github.com/batchyard/batchyard/device"
)

// BatchSizes learns how many items a device takes in one batched request, by model. Nothing is
// known until the device has refused a request for its size; then half as many are sent, and
// the largest number that worked is kept.
//
// It may be used by many goroutines.
type BatchSizes struct {
	mu sync.Mutex
	by map[string]batchSize
}

type batchSize struct {
	worked  int // the most items that worked
	refused int // the fewest that were refused; 0: none were
}

func (s batchSize) most() int {
	if s.refused == 0 {
		return 0
	}
	return max(1, s.worked, s.refused/2)
}

// NewBatchSizes returns BatchSizes of a device that has refused nothing yet.
func NewBatchSizes() *BatchSizes { return &BatchSizes{by: map[string]batchSize{}} }

// Most returns how many items a request may have; 0: as many as any.
func (b *BatchSizes) Most(model string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.by[model].most()
}

// Worked records that a request of n items was answered.
func (b *BatchSizes) Worked(model string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.by[model]
	if n <= s.worked || !ok && len(b.by) >= device.MaxBatches {
		return
	}
	s.worked = n
	if s.refused > 0 && s.refused <= n { // it takes more than before
		s.refused = 0
	}
	b.by[model] = s
}

// Refused records that a request of n items was too large.
func (b *BatchSizes) Refused(model string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.by[model]
	if !ok && len(b.by) >= device.MaxBatches {
		return
	}
	if s.worked >= n { // it takes fewer than before
		s.worked = 0
	}
	if s.refused == 0 || n < s.refused {
		s.refused = n
	}
	b.by[model] = s
}

// Seed takes over what an earlier owner of the device learned.
func (b *BatchSizes) Seed(most map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for model, n := range most {
		if _, ok := b.by[model]; !ok && n > 0 && len(b.by) < device.MaxBatches {
			b.by[model] = batchSize{worked: n, refused: n + 1}
		}
	}
}

// Known returns the limits, by model.
func (b *BatchSizes) Known() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out map[string]int
	for model, s := range b.by {
		if n := s.most(); n > 0 {
			if out == nil {
				out = map[string]int{}
			}
			out[model] = n
		}
	}
	return out
}
