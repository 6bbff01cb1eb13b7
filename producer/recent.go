package producer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/task"
)

// Recent is what is known about a task from its submit alone. It is PENDING or further; only Postgres
// knows.
type Recent struct {
	ID          string            `json:"task_id"`
	Tenant      string            `json:"tenant"`
	Model       string            `json:"model"`
	Endpoint    string            `json:"endpoint"`
	Priority    task.Priority     `json:"priority"`
	Level       int               `json:"level,omitempty"`
	Job         string            `json:"job_id,omitempty"`
	CustomID    string            `json:"custom_id,omitempty"`
	TraceID     string            `json:"trace_id,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Callback    *task.Callback    `json:"callback,omitempty"`
	SubmittedAt time.Time         `json:"submitted_at"`
	Deadline    time.Time         `json:"deadline,omitzero"`
	Generation  int               `json:"generation,omitempty"`
}

// Key returns the identity of the task.
func (r *Recent) Key() task.Key { return task.Key{Tenant: r.Tenant, ID: r.ID} }

// RecentOf returns what is known of a task that was submitted, such as to cancel it.
func RecentOf(t *task.Task) Recent {
	return Recent{
		ID: t.ID, Tenant: t.Tenant, Model: t.Model, Endpoint: t.Endpoint, Priority: t.Priority, Level: t.Level, Job: t.JobID,
		CustomID: t.CustomID, TraceID: t.TraceID, Labels: t.Labels, Callback: t.Callback,
		SubmittedAt: t.SubmittedAt, Deadline: t.Deadline, Generation: t.Generation(),
	}
}

// ring remembers the most recent tasks; a new one replaces the oldest. It holds no inputs, so its
// memory is small and bounded.
type ring struct {
	mu    sync.Mutex
	at    map[[16]byte]int
	slots []Recent
	next  int
	most  int
}

func newRing(most int) *ring { return &ring{at: map[[16]byte]int{}, most: most} }

func (r *ring) put(tasks []*task.Task) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range tasks {
		h := t.Key().Hash()
		if i, ok := r.at[h]; ok {
			r.slots[i] = RecentOf(t)
			continue
		}
		if len(r.slots) < r.most {
			r.slots = append(r.slots, Recent{})
		} else {
			delete(r.at, r.slots[r.next].Key().Hash())
		}
		r.slots[r.next] = RecentOf(t)
		r.at[h] = r.next
		r.next = (r.next + 1) % r.most
	}
	return len(r.slots)
}

func (r *ring) get(k task.Key) (Recent, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.at[k.Hash()]
	if !ok {
		return Recent{}, false
	}
	return r.slots[i], true
}

// recentIndex shares recent tasks with other processes through Redis, which may lose them.
type recentIndex struct {
	rdb    redis.UniversalClient // nil: nothing is shared
	ttl    time.Duration
	prefix string
}

func (m *recentIndex) key(k task.Key) string {
	h := k.Hash()
	return m.prefix + "recent:" + base64.RawURLEncoding.EncodeToString(h[:])
}

// enabled reports whether tasks are shared.
func (m *recentIndex) enabled() bool { return m.rdb != nil && m.ttl > 0 }

func (m *recentIndex) put(ctx context.Context, tasks []*task.Task) error {
	pipe := m.rdb.Pipeline()
	for _, t := range tasks {
		b, err := json.Marshal(RecentOf(t))
		if err != nil {
			return fmt.Errorf("remembering task %s in Redis: %w", t.Key(), err)
		}
		pipe.Set(ctx, m.key(t.Key()), b, m.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("remembering %d tasks in Redis: %w", len(tasks), err)
	}
	return nil
}

func (m *recentIndex) get(ctx context.Context, k task.Key) (Recent, bool, error) {
	if !m.enabled() {
		return Recent{}, false, nil
	}
	b, err := m.rdb.Get(ctx, m.key(k)).Bytes()
	if errors.Is(err, redis.Nil) {
		return Recent{}, false, nil
	}
	if err != nil {
		return Recent{}, false, fmt.Errorf("asking Redis for task %s: %w", k, err)
	}
	r, ok := parseRecent(b)
	if !ok || r.Key() != k {
		return Recent{}, false, nil // not ours: ignore it
	}
	return r, true, nil
}

// parseRecent decodes a value of Redis, which another program may have written.
func parseRecent(b []byte) (r Recent, ok bool) {
	const most = 64 << 10
	if len(b) > most || bytes.Count(b, []byte(",")) > 8*task.MaxLabels+64 {
		return Recent{}, false
	}
	return r, json.Unmarshal(b, &r) == nil
}

// Recent returns a task that was submitted recently. ok is false when the task is not remembered, which
// does not mean that it does not exist. An error means that Redis could not be asked.
func (p *Producer) Recent(ctx context.Context, k task.Key) (r *Recent, ok bool, err error) {
	if r, ok := p.recent.get(k); ok {
		p.metrics.Producer.RecentHits.Inc()
		return &r, true, nil
	}
	got, ok, err := p.shared.get(ctx, k)
	if err != nil || !ok {
		return nil, false, err
	}
	p.metrics.Producer.RecentHits.Inc()
	return &got, true, nil
}
