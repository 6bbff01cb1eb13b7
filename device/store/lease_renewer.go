package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// releaseTimeout limits how long Run releases credits after its context has ended.
const releaseTimeout = 2 * time.Second

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
	for {
		select {
		case <-ctx.Done():
			r.release(releasing)
			return
		case <-r.wake:
			r.release(releasing)
		case <-tick.C:
			r.renew(ctx)
		}
	}
}

// release releases what has accumulated. A release that fails is not retried: the lease
// expires by itself, and stale releases must not block new ones.
func (r *LeaseRenewer) release(ctx context.Context) {
	r.mu.Lock()
	back := r.released
	r.released = make(map[device.LeaseRef]int, len(back))
	r.mu.Unlock()
	if len(back) == 0 {
		return
	}
	rel := make([]device.Release, 0, len(back))
	for ref, n := range back {
		rel = append(rel, device.Release{Pool: ref.Pool, Lease: ref.Lease, N: n})
	}
	if err := r.credits.Release(ctx, rel); err != nil && ctx.Err() == nil {
		r.log.Debug("could not release credits; their leases will expire", "leases", len(rel), "error", err)
	}
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
