package status

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/pg"
	"github.com/batchyard/batchyard/task"
)

// ErrTooManyWaiters says that status.max_waiters requests are waiting already.
var ErrTooManyWaiters = errors.New("too many requests are waiting for a task to finish; try again later, or use a callback")

// ErrStoreClosed says that the store was closed, because the process stops.
var ErrStoreClosed = errors.New("the store is closed")

// hub lets many requests wait for tasks with one listening connection and one query for all tasks
// that may have finished.
//
//	idle ──first wait──▶ connecting ──▶ listening ─┐
//	                        ▲    query all tasks    │ connection lost
//	                        └───────────────────────┘
//	close: every wait ends with ErrStoreClosed
//
// A notification names the tasks that have finished, so only those are queried. All tasks are
// queried after each connect, because notifications may have been missed, and at intervals in case
// everything else fails.
type hub struct {
	store   *Store
	cfg     Config
	logger  *slog.Logger
	metrics *metrics.Audit

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // there is something to query

	mu      sync.Mutex
	started bool
	closed  bool
	waiters map[pg.ShortHash]map[*waiter]struct{} // bounded by cfg.MaxWaiters
	count   int
	named   map[pg.ShortHash]struct{} // by notifications; a subset of waiters
	all     bool                      // query for every waiter
}

// waiter is one request.
type waiter struct {
	task.Run
	row chan *TaskRow // has room for one
}

func newHub(s *Store, cfg Config, logger *slog.Logger, m *metrics.Audit) *hub {
	h := &hub{
		store: s, cfg: cfg, logger: logger, metrics: m, wake: make(chan struct{}, 1),
		waiters: map[pg.ShortHash]map[*waiter]struct{}{}, named: map[pg.ShortHash]struct{}{},
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

func (h *hub) wait(ctx context.Context, r task.Run) (*TaskRow, error) {
	w := &waiter{r, make(chan *TaskRow, 1)}
	if err := h.add(w); err != nil {
		return nil, err
	}
	defer h.remove(w)
	// This query must come after add: from then on a notification reaches the waiter.
	row, err := h.store.Task(ctx, r.Key)
	switch {
	case err == nil && row.State.Terminal() && row.Result != nil && row.Generation >= r.Generation:
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
		h.wg.Go(h.run)
	}
	hash := pg.Shorten(w.Key.Hash())
	if h.waiters[hash] == nil {
		h.waiters[hash] = map[*waiter]struct{}{}
	}
	h.waiters[hash][w] = struct{}{}
	h.count++
	h.metrics.Waiters.Set(float64(h.count))
	return nil
}

func (h *hub) remove(w *waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hash := pg.Shorten(w.Key.Hash())
	delete(h.waiters[hash], w)
	if len(h.waiters[hash]) == 0 {
		delete(h.waiters, hash)
		delete(h.named, hash)
	}
	h.count--
	h.metrics.Waiters.Set(float64(h.count))
}

// listen receives notifications for as long as the hub lives.
func (h *hub) listen() {
	pg.Listen(h.ctx, h.store.pool, pg.ListenOptions{
		Channel: pg.ResultsChannel, Quiet: h.cfg.PollInterval, Logger: h.logger, Notified: h.notified, Missed: h.nameAll,
	})
}

// notified names the tasks of a notification that requests wait for.
func (h *hub) notified(text string) {
	hashes, ok := pg.DecodeNotification(text)
	if !ok {
		h.nameAll()
		return
	}
	h.mu.Lock()
	found := false
	for _, hash := range hashes {
		if _, waits := h.waiters[hash]; waits {
			h.named[hash] = struct{}{}
			found = true
		}
	}
	h.mu.Unlock()
	if found {
		h.signal()
	}
}

// nameAll names all tasks that requests wait for.
func (h *hub) nameAll() {
	h.mu.Lock()
	h.all = len(h.waiters) > 0
	some := h.all
	h.mu.Unlock()
	if some {
		h.signal()
	}
}

func (h *hub) signal() {
	select {
	case h.wake <- struct{}{}:
	default: // it is awake
	}
}

// queryTasks bounds the results that one query loads into memory.
const queryTasks = 64

// run queries the tasks that were named and wakes the requests that wait for them. Tasks that are
// named during a query are queried together, next.
func (h *hub) run() {
	poll := time.NewTicker(h.cfg.PollInterval)
	defer poll.Stop()
	wait := pg.NewBackoff()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-poll.C: // in case listening does not work
			h.nameAll()
			continue
		case <-h.wake:
		}
		if err := h.query(h.takeNamed()); err == nil {
			wait.Reset()
			continue
		} else if h.ctx.Err() == nil {
			h.logger.Warn("querying tasks that requests wait for failed; trying again soon", "error", pg.Describe(err))
		}
		_ = pg.Sleep(h.ctx, wait.NextBackOff(), nil)
		h.nameAll()
	}
}

func (h *hub) query(keys []task.Key) error {
	for len(keys) > 0 {
		n := min(len(keys), queryTasks)
		ctx, cancel := context.WithTimeout(h.ctx, h.cfg.PollInterval)
		err := h.store.finished(ctx, keys[:n], h.deliver)
		cancel()
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// takeNamed returns the tasks that were named, and forgets them.
func (h *hub) takeNamed() []task.Key {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []task.Key
	add := func(hash pg.ShortHash) {
		seen := map[task.Key]bool{}
		for w := range h.waiters[hash] {
			if !seen[w.Key] {
				seen[w.Key] = true
				keys = append(keys, w.Key)
			}
		}
	}
	if h.all {
		for hash := range h.waiters {
			add(hash)
		}
	} else {
		for hash := range h.named {
			add(hash)
		}
	}
	h.all = false
	clear(h.named)
	return keys
}

// deliver passes a finished task to all requests that wait for it.
func (h *hub) deliver(row *TaskRow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.waiters[pg.Shorten(row.Key().Hash())] {
		if w.Key == row.Key() && row.Generation >= w.Generation {
			select {
			case w.row <- row:
			default: // it has the row
			}
		}
	}
}
