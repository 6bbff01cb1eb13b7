package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pglisten"
	"github.com/batchyard/batchyard/task"
)

// ErrTooManyWaiters says that audit.max_waiters requests wait already.
var ErrTooManyWaiters = errors.New("too many requests wait for the end of a task; ask again later, or use a callback")

// ErrStoreClosed says that the store was closed: the process stops.
var ErrStoreClosed = errors.New("the store is closed")

// hub lets many requests wait for the end of tasks with one connection that
// listens and one query for all that may have ended.
//
//	nobody has waited ──first wait──▶ connecting ──▶ listening ─┐
//	                                     ▲     look at all      │ connection lost
//	                                     └──────────────────────┘
//	close: every wait ends with ErrStoreClosed
//
// A notification names the tasks that have ended, so that only those are looked
// at. What may have been missed is looked at after each connect and, should all
// else fail, every few seconds.
type hub struct {
	store *Store
	cfg   Config
	log   *slog.Logger
	m     *metrics.Audit

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	look   chan struct{} // something is to be looked at

	mu      sync.Mutex
	started bool
	closed  bool
	waiters map[shortHash]map[*waiter]struct{} // bounded by cfg.MaxWaiters
	count   int
	hot     map[shortHash]struct{} // named by notifications; a subset of waiters
	all     bool                   // look at every waiter
}

// waiter is one request.
type waiter struct {
	key task.Key
	row chan *TaskRow // has room for one
}

func newHub(s *Store, cfg Config, log *slog.Logger, m *metrics.Metrics) *hub {
	h := &hub{
		store: s, cfg: cfg, log: log, m: &m.Audit, look: make(chan struct{}, 1),
		waiters: map[shortHash]map[*waiter]struct{}{}, hot: map[shortHash]struct{}{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.wg.Wait()
}

func (h *hub) wait(ctx context.Context, k task.Key) (*TaskRow, error) {
	w := &waiter{k, make(chan *TaskRow, 1)}
	if err := h.add(w); err != nil {
		return nil, err
	}
	defer h.remove(w)
	// After it was added: what ends from now on is told.
	row, err := h.store.Task(ctx, k)
	switch {
	case err == nil && row.State.Terminal() && row.Result != nil:
		return row, nil
	case err != nil && !errors.Is(err, ErrNotFound):
		return nil, err
	}
	select {
	case row := <-w.row:
		return row, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.ctx.Done():
		return nil, ErrStoreClosed
	}
}

func (h *hub) add(w *waiter) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrStoreClosed
	}
	if h.count >= h.cfg.MaxWaiters {
		return ErrTooManyWaiters
	}
	if !h.started {
		h.started = true
		h.wg.Go(h.listen)
		h.wg.Go(h.check)
	}
	hash := hashOf(w.key)
	if h.waiters[hash] == nil {
		h.waiters[hash] = map[*waiter]struct{}{}
	}
	h.waiters[hash][w] = struct{}{}
	h.count++
	h.m.Waiters.Set(float64(h.count))
	return nil
}

func (h *hub) remove(w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hash := hashOf(w.key)
	delete(h.waiters[hash], w)
	if len(h.waiters[hash]) == 0 {
		delete(h.waiters, hash)
		delete(h.hot, hash)
	}
	h.count--
	h.m.Waiters.Set(float64(h.count))
}

// listen keeps a connection of its own that listens, for as long as the hub lives.
func (h *hub) listen() {
	pglisten.Listen(h.ctx, h.store.pool, pglisten.Options{
		Channel: ResultsChannel, Quiet: h.cfg.Safety, Log: h.log,
		Changed: func(text string, any bool) {
			if any {
				h.lookAtAll()
			} else {
				h.notified(text)
			}
		},
	})
}

// notified marks the tasks that a notification names and somebody waits for.
func (h *hub) notified(payload string) {
	hashes, ok := readNotification(payload)
	if !ok {
		h.lookAtAll()
		return
	}
	h.mu.Lock()
	found := false
	for _, hash := range hashes {
		if _, waits := h.waiters[hash]; waits {
			h.hot[hash] = struct{}{}
			found = true
		}
	}
	h.mu.Unlock()
	if found {
		h.wake()
	}
}

func (h *hub) lookAtAll() {
	h.mu.Lock()
	h.all = len(h.waiters) > 0
	some := h.all
	h.mu.Unlock()
	if some {
		h.wake()
	}
}

func (h *hub) wake() {
	select {
	case h.look <- struct{}{}:
	default: // it will look anyway
	}
}

// lookPage bounds the results that one query brings into memory.
const lookPage = 64

// check looks at the tasks that may have ended and tells those who wait. What
// is named meanwhile is looked at together, next.
func (h *hub) check() {
	safety := time.NewTicker(h.cfg.Safety)
	defer safety.Stop()
	wait := newBackoff()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-safety.C: // for when listening does not work
			h.lookAtAll()
			continue
		case <-h.look:
		}
		if err := h.lookAt(h.named()); err == nil {
			wait.Reset()
			continue
		} else if h.ctx.Err() == nil {
			h.log.Warn("looking at tasks that requests wait for; looking again soon", "error", describe(err))
		}
		_ = pause(h.ctx, wait)
		h.lookAtAll()
	}
}

func (h *hub) lookAt(keys []task.Key) error {
	for len(keys) > 0 {
		n := min(len(keys), lookPage)
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Safety)
		err := h.store.ended(ctx, keys[:n], h.tell)
		cancel()
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// named takes what is to be looked at.
func (h *hub) named() []task.Key {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []task.Key
	add := func(hash shortHash) {
		seen := map[task.Key]bool{}
		for w := range h.waiters[hash] {
			if !seen[w.key] {
				seen[w.key] = true
				keys = append(keys, w.key)
			}
		}
	}
	if h.all {
		for hash := range h.waiters {
			add(hash)
		}
	} else {
		for hash := range h.hot {
			add(hash)
		}
	}
	h.all = false
	clear(h.hot)
	return keys
}

// tell gives a task that has ended to everybody who waits for it.
func (h *hub) tell(row *TaskRow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.waiters[hashOf(row.Key())] {
		if w.key == row.Key() {
			select {
			case w.row <- row:
			default: // it has it
			}
		}
	}
}
