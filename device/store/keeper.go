package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// releaseTimeout limits the last release when Run ends.
const releaseTimeout = 2 * time.Second

// LeaseRenewer looks after the leases of the assignments that its process holds: it renews them
// while they are held and releases credits, many in one round trip. If the process dies,
// the leases expire and the credits become free.
type LeaseRenewer struct {
	credits *Credits
	every   time.Duration
	log     *slog.Logger

	mu       sync.Mutex
	held     map[device.LeaseRef]int
	released map[device.LeaseRef]int
	wake     chan struct{}
}

// NewLeaseRenewer returns a keeper; call Run to start it.
func NewLeaseRenewer(c *Credits, log *slog.Logger) *LeaseRenewer {
	return &LeaseRenewer{
		credits: c, every: c.cfg.LeaseTTL / 3, log: log,
		held: map[device.LeaseRef]int{}, released: map[device.LeaseRef]int{}, wake: make(chan struct{}, 1),
	}
}

func refOf(l task.Lease) device.LeaseRef { return device.LeaseRef{Pool: l.Pool, Lease: l.ID} }

// Hold keeps one more credit of the lease alive.
func (k *LeaseRenewer) Hold(l task.Lease) {
	if l.ID == "" {
		return
	}
	k.mu.Lock()
	k.held[refOf(l)]++
	k.mu.Unlock()
}

// Drop stops keeping n credits of the lease alive: another process does so now.
func (k *LeaseRenewer) Drop(l task.Lease, n int) {
	k.mu.Lock()
	k.drop(refOf(l), n)
	k.mu.Unlock()
}

func (k *LeaseRenewer) drop(r device.LeaseRef, n int) {
	if left := k.held[r] - n; left > 0 {
		k.held[r] = left
	} else {
		delete(k.held, r)
	}
}

// Release releases one credit: the work it was for is over.
func (k *LeaseRenewer) Release(l task.Lease) {
	if l.ID == "" {
		return
	}
	k.mu.Lock()
	k.drop(refOf(l), 1)
	k.released[refOf(l)]++
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run renews and releases until ctx ends; then it releases what is left.
func (k *LeaseRenewer) Run(ctx context.Context) {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
			defer cancel()
			k.release(last)
			return
		case <-k.wake:
			k.release(ctx)
		case <-tick.C:
			k.renew(ctx)
		}
	}
}

// release releases what has accumulated. A release that fails is not retried: the lease
// expires by itself, and stale releases must not block new ones.
func (k *LeaseRenewer) release(ctx context.Context) {
	k.mu.Lock()
	back := k.released
	k.released = make(map[device.LeaseRef]int, len(back))
	k.mu.Unlock()
	if len(back) == 0 {
		return
	}
	rel := make([]device.Release, 0, len(back))
	for r, n := range back {
		rel = append(rel, device.Release{Pool: r.Pool, Lease: r.Lease, N: n})
	}
	if err := k.credits.Release(ctx, rel); err != nil && ctx.Err() == nil {
		k.log.Debug("could not release credits; their leases will expire", "leases", len(rel), "error", err)
	}
}

func (k *LeaseRenewer) renew(ctx context.Context) {
	k.mu.Lock()
	refs := make([]device.LeaseRef, 0, len(k.held))
	for r := range k.held {
		refs = append(refs, r)
	}
	k.mu.Unlock()
	if len(refs) == 0 {
		return
	}
	lost, err := k.credits.Renew(ctx, refs)
	switch {
	case err != nil && ctx.Err() == nil:
		k.log.Warn("could not renew leases in Redis; devices may get more work than they have slots", "leases", len(refs), "error", err)
	case lost > 0:
		k.log.Debug("leases expired or were lost", "lost", lost)
	}
}
