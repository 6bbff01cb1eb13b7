package device

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/task"
)

// giveBackTimeout limits the last release when Run ends.
const giveBackTimeout = 2 * time.Second

// Keeper looks after the leases of the assignments that its process holds: it renews them
// while they are held and releases credits, many in one round trip. If the process dies,
// the leases expire and the credits become free.
type Keeper struct {
	credits *Credits
	every   time.Duration
	log     *slog.Logger

	mu   sync.Mutex
	held map[LeaseRef]int
	back map[LeaseRef]int
	wake chan struct{}
}

// NewKeeper returns a keeper; call Run to start it.
func NewKeeper(c *Credits, log *slog.Logger) *Keeper {
	return &Keeper{
		credits: c, every: c.cfg.LeaseTTL / 3, log: log,
		held: map[LeaseRef]int{}, back: map[LeaseRef]int{}, wake: make(chan struct{}, 1),
	}
}

func refOf(l task.Lease) LeaseRef { return LeaseRef{Pool: l.Pool, Lease: l.ID} }

// Hold keeps one more credit of the lease alive.
func (k *Keeper) Hold(l task.Lease) {
	if l.ID == "" {
		return
	}
	k.mu.Lock()
	k.held[refOf(l)]++
	k.mu.Unlock()
}

// Drop stops keeping n credits of the lease alive: another process does so now.
func (k *Keeper) Drop(l task.Lease, n int) {
	k.mu.Lock()
	k.drop(refOf(l), n)
	k.mu.Unlock()
}

func (k *Keeper) drop(r LeaseRef, n int) {
	if left := k.held[r] - n; left > 0 {
		k.held[r] = left
	} else {
		delete(k.held, r)
	}
}

// GiveBack releases one credit: the work it was for is over.
func (k *Keeper) GiveBack(l task.Lease) {
	if l.ID == "" {
		return
	}
	k.mu.Lock()
	k.drop(refOf(l), 1)
	k.back[refOf(l)]++
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run renews and releases until ctx ends; then it releases what is left.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTimeout)
			defer cancel()
			k.giveBack(last)
			return
		case <-k.wake:
			k.giveBack(ctx)
		case <-tick.C:
			k.renew(ctx)
		}
	}
}

// giveBack releases what has accumulated. A release that fails is not retried: the lease
// expires by itself, and stale releases must not block new ones.
func (k *Keeper) giveBack(ctx context.Context) {
	k.mu.Lock()
	back := k.back
	k.back = make(map[LeaseRef]int, len(back))
	k.mu.Unlock()
	if len(back) == 0 {
		return
	}
	rel := make([]Release, 0, len(back))
	for r, n := range back {
		rel = append(rel, Release{Pool: r.Pool, Lease: r.Lease, N: n})
	}
	if err := k.credits.Release(ctx, rel); err != nil && ctx.Err() == nil {
		k.log.Debug("could not release credits; their leases will expire", "leases", len(rel), "error", err)
	}
}

func (k *Keeper) renew(ctx context.Context) {
	k.mu.Lock()
	refs := make([]LeaseRef, 0, len(k.held))
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
