package batcher

import (
	"time"

	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// Waiting says what waits in the batcher. It is called about once a second, by one goroutine. Nothing waits here for long
// but for its batch to close.
func (b *Batcher) Waiting(now time.Time) waiting.List {
	cfg := b.limits.Load()
	longest := max(cfg.Batched.MaxWait, cfg.Single.MaxWait)
	for _, r := range cfg.Rules {
		longest = max(longest, r.MaxWait)
	}
	return records.Waiting(b.deps.Stream, Stage, now, func(u *stream.Unfinished, o *waiting.Oldest) bool {
		if u.Progress == stream.InFlight {
			o.Allow = longest
		}
		return true
	})
}
