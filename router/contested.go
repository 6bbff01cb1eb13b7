package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/router/decide"
)

const (
	contestPause = 250 * time.Millisecond // between two looks at contested ids; the recorder usually needs less
	maxContested = 1000                   // more wait in the log: reading their partition stops
)

// settle holds the tasks whose id another request has claimed, and looks at them again and again: until
// Postgres says whose id it is, or the claim expires. The records are not done meanwhile. While Postgres is
// away they wait; other tasks do not.
//
// The id belongs to the request that a router let in first, and Postgres knows that as soon as the event is
// recorded. So two requests under one id are never both refused, whatever happens to claims. Both may run if
// the first one's claim is lost before its event is recorded; the recorder then keeps the answer of the one that
// the id belongs to.
func (r *Router) settle(ctx context.Context) error {
	var waiting []*decide.Item
	tick := time.NewTicker(contestPause)
	defer tick.Stop()
	for {
		r.sched.oldest.reportContested(time.Now(), waiting)
		incoming := r.contested
		if len(waiting) >= maxContested {
			incoming = nil
		}
		select {
		case it := <-incoming:
			originOf(it).contested = time.Now()
			waiting = append(waiting, it)
		case <-tick.C:
			waiting = append(waiting, r.sched.disputes.take()...)
			waiting = slices.DeleteFunc(waiting, func(it *decide.Item) bool { return originOf(it).rec.Lost() })
			if len(waiting) > 0 {
				waiting = r.admit(ctx, waiting)
			}
		case <-ctx.Done():
			return nil
		}
		r.deps.Metrics.Router.Contested.Set(float64(len(waiting)))
	}
}

// disputes are the items that the scheduler has met another request for in the window. They wait to be settled.
// Their number is bounded, because their records are in flight.
type disputes struct {
	mu    sync.Mutex
	items []*decide.Item
}

func (d *disputes) add(it *decide.Item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	originOf(it).contested = time.Now()
	d.items = append(d.items, it)
}

func (d *disputes) take() (items []*decide.Item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	items, d.items = d.items, nil
	return items
}
