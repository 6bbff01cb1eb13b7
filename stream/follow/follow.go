// Package follow hands out what is written to a partition from now on.
package follow

import (
	"context"
	"time"

	"github.com/batchyard/batchyard/stream"
)

// pause is how long a partition is left alone after a failure.
const pause = 100 * time.Millisecond

// Tail says which partition to follow, and who hears of it. All functions are called from one goroutine,
// and must not block for long.
type Tail struct {
	Topic     string // without the prefix
	Partition int
	Started   func()                   // called once: every record that is written from now on will be handed out
	Missed    func(err error)          // records may not be handed out at all, or late; called again while that lasts
	Handle    func(r []*stream.Record) // consecutive records
}

// Partition hands out the records that are written to a partition from now on, until ctx ends. It joins no
// group and commits nothing, so it takes no record from anybody and no rebalance interrupts it. After a
// failure it continues where it was, or at the end of a log that does not reach there any more.
func Partition(ctx context.Context, cl *stream.Client, t Tail) {
	at, started := int64(0), false
	handle := func(r []*stream.Record) bool {
		if len(r) > 0 {
			t.Handle(r)
			at = r[len(r)-1].Offset + 1
		}
		return ctx.Err() == nil
	}
	for ctx.Err() == nil {
		var err error
		switch {
		case !started:
			if _, at, err = cl.Bounds(ctx, t.Topic, t.Partition); err == nil {
				started = true
				t.Started()
			}
		default:
			var next int64
			if next, err = cl.Fetch(ctx, t.Topic, t.Partition, at, handle); err == nil {
				at = max(at, next)
			}
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		t.Missed(err)
		wait(ctx)
		if first, end, err := cl.Bounds(ctx, t.Topic, t.Partition); err == nil && started && (at < first || at > end) {
			at = end // it was deleted before it was read, or the topic was recreated
		}
	}
}

func wait(ctx context.Context) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
