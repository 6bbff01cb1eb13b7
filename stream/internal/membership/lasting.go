package membership

import (
	"context"
	"time"
)

// commitGrace is how much longer a commit under way may take when the consumer stops.
const commitGrace = time.Second

// Lasting returns a context for a commit, which outlives ctx by a moment. An abandoned commit could still
// reach the broker after the last one, which uses another connection, and undo it.
func Lasting(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	grace := make(chan *time.Timer, 1)
	stop := context.AfterFunc(ctx, func() { grace <- time.AfterFunc(commitGrace, cancel) })
	return lasting, func() {
		if !stop() {
			(<-grace).Stop()
		}
		cancel()
	}
}
