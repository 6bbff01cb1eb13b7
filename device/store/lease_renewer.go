package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

const (
	// releaseTimeout limits how long Run releases credits after its context has ended.
	releaseTimeout = 2 * time.Second
	// releaseRetry is the pause before releases that failed are repeated.
	releaseRetry = 250 * time.Millisecond
)

// LeaseRenewer looks after the leases of the assignments that its process holds: it renews
// them while they are held and releases credits, many in one round trip. If the process
// dies, the leases expire and the credits become free.
type LeaseRenewer struct {
	credits *Credits
	every   time.Duration
	log     *slog.Logger

	mu       sync.Mutex
	held     map[device.LeaseRef]int
	released map[device.LeaseRef]int
	wake     chan struct{}

	unsent []*releaseCall // failed, and to be repeated; only Run uses them
}

// NewLeaseRenewer returns a renewer; call Run to start it.
func NewLeaseRenewer(c *Credits, log *slog.Logger) *LeaseRenewer {
	return &LeaseRenewer{
		credits: c, every: c.cfg.LeaseTTL / 3, log: log,
		held: map[device.LeaseRef]int{}, released: map[device.LeaseRef]int{}, wake: make(chan struct{}, 1),
	}
}

func refOf(l task.Lease) device.LeaseRef { return device.LeaseRef{Pool: l.Pool, Lease: l.ID} }

// Hold keeps one more credit of the lease alive.
func (r *LeaseRenewer) Hold(l task.Lease) {
	if l.ID == "" {
		return
	}
	r.mu.Lock()
	r.held[refOf(l)]++
	r.mu.Unlock()
}

// Drop stops keeping n credits of the lease alive: another process does so now.
func (r *LeaseRenewer) Drop(l task.Lease, n int) {
	r.mu.Lock()
	r.drop(refOf(l), n)
	r.mu.Unlock()
}

func (r *LeaseRenewer) drop(ref device.LeaseRef, n int) {
	if left := r.held[ref] - n; left > 0 {
		r.held[ref] = left
	} else {
		delete(r.held, ref)
	}
}

// Release releases one credit: the work it was for is over.
func (r *LeaseRenewer) Release(l task.Lease) {
	if l.ID == "" {
		return
	}
	r.mu.Lock()
	r.drop(refOf(l), 1)
	r.released[refOf(l)]++
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run renews and releases until ctx ends; then it releases what is left. A release that is in
// flight when ctx ends is completed, since nothing else would release its credits before the
// leases expire.
func (r *LeaseRenewer) Run(ctx context.Context) {
	releasing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(releaseTimeout, cancel) })()
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	retry := time.NewTicker(releaseRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			r.release(releasing)
			return
		case <-r.wake:
			if len(r.unsent) == 0 {
				r.release(releasing)
			}
		case <-retry.C:
			if len(r.unsent) > 0 {
				r.release(releasing)
			}
		case <-tick.C:
			r.renew(ctx)
		}
	}
}

// release releases what has accumulated, after what failed before. Otherwise, when a Redis Cluster
// has promoted a replica, all devices would look busy until the leases of what they finished
// meanwhile expire. New releases gather while Redis does not answer.
func (r *LeaseRenewer) release(ctx context.Context) {
	r.unsent = r.send(ctx, r.unsent)
	if len(r.unsent) > 0 {
		return
	}
	r.mu.Lock()
	back := r.released
	r.released = make(map[device.LeaseRef]int, len(back))
	r.mu.Unlock()
	rel := make([]device.Release, 0, len(back))
	for ref, n := range back {
		rel = append(rel, device.Release{Pool: ref.Pool, Lease: ref.Lease, N: n})
	}
	r.unsent = r.send(ctx, releaseCalls(rel))
}

// send returns the calls that have to be repeated. A call that Redis may have forgotten is not: it
// would release credits that the same lease still holds. Its leases expire.
func (r *LeaseRenewer) send(ctx context.Context, calls []*releaseCall) (failed []*releaseCall) {
	for i, call := range calls {
		if !call.first.IsZero() && time.Since(call.first) > releaseMemory-time.Second {
			continue
		}
		err := r.credits.release(ctx, call)
		if err == nil {
			continue
		}
		if ctx.Err() == nil && len(r.unsent) == 0 {
			r.log.Warn("cannot release credits in Redis: trying until it answers, or until their leases expire", "leases", len(call.leases)/2, "error", err)
		}
		return calls[i:]
	}
	return nil
}

func (r *LeaseRenewer) renew(ctx context.Context) {
	r.mu.Lock()
	refs := make([]device.LeaseRef, 0, len(r.held))
	for ref := range r.held {
		refs = append(refs, ref)
	}
	r.mu.Unlock()
	if len(refs) == 0 {
		return
	}
	lost, err := r.credits.Renew(ctx, refs)
	switch {
	case err != nil && ctx.Err() == nil:
		r.log.Warn("could not renew leases in Redis; devices may get more work than they have slots", "leases", len(refs), "error", err)
	case lost > 0:
		r.log.Debug("leases expired or were lost", "lost", lost)
	}
}
