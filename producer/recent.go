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

// Recent is what is known of a task from its submit alone: it is accepted and
// PENDING, or further, which only Postgres can tell.
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
}

// Key returns the identity of the task.
func (r *Recent) Key() task.Key { return task.Key{Tenant: r.Tenant, ID: r.ID} }

func recentOf(t *task.Task) Recent {
	return Recent{
		ID: t.ID, Tenant: t.Tenant, Model: t.Model, Endpoint: t.Endpoint, Priority: t.Priority, Level: t.Level, Job: t.Job,
		CustomID: t.CustomID, TraceID: t.TraceID, Labels: t.Labels, Callback: t.Callback,
		SubmittedAt: t.SubmittedAt, Deadline: t.Deadline,
	}
}

// ring remembers the last so many tasks: a new one takes the place of the
// oldest. It holds no input, so its memory is small and bounded.
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
			r.slots[i] = recentOf(t)
			continue
		}
		if len(r.slots) < r.most {
			r.slots = append(r.slots, Recent{})
		} else {
			delete(r.at, r.slots[r.next].Key().Hash())
		}
		r.slots[r.next] = recentOf(t)
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

// marks are the same in Redis, for the other processes. They may be forgotten.
type marks struct {
	rdb    redis.UniversalClient // nil: no marks
	ttl    time.Duration
	prefix string
}

func (m *marks) key(k task.Key) string {
	h := k.Hash()
	return m.prefix + "recent:" + base64.RawURLEncoding.EncodeToString(h[:])
}

// kept reports whether marks are written at all.
func (m *marks) kept() bool { return m.rdb != nil && m.ttl > 0 }

func (m *marks) put(ctx context.Context, tasks []*task.Task) error {
	pipe := m.rdb.Pipeline()
	for _, t := range tasks {
		b, err := json.Marshal(recentOf(t))
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

func (m *marks) get(ctx context.Context, k task.Key) (Recent, bool, error) {
	if !m.kept() {
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
		return Recent{}, false, nil // not ours: as good as forgotten
	}
	return r, true, nil
}

// parseRecent reads a mark; another program may have written it.
func parseRecent(b []byte) (r Recent, ok bool) {
	const most = 64 << 10
	if len(b) > most || bytes.Count(b, []byte(",")) > 8*task.MaxLabels+64 {
		return Recent{}, false
	}
	return r, json.Unmarshal(b, &r) == nil
}
