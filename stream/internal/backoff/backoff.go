// Package backoff says how long to wait before something that failed is tried again.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	least = 20 * time.Millisecond
	most  = time.Second
)

// After returns the pause after so many failures, varied by up to a half.
func After(failures int) time.Duration { return vary(min(most, least<<min(failures, 10))) }

func vary(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// Wait waits, longer after more failures, or until ctx ends.
func Wait(ctx context.Context, failures int) {
	timer := time.NewTimer(vary(min(most, 5*least<<min(failures, 10))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
