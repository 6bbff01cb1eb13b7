package device

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// maxCancels is how many tasks one message may list.
const maxCancels = 1000

// Cancels holds the operators' overrides: which tasks to cancel, and which to run sooner
// or later than submitted. Overrides only make these changes quick. A cancelled task stays
// cancelled because of its result, and a task keeps its new priority because the router
// that holds it writes it down.
//
// The override of a task is a small hash with a time to live: c means cancelled, p and l
// are the new priority and level. A message on a channel reaches the processes that may
// hold the task.
type Cancels struct {
	rdb      redis.UniversalClient
	cfg      Config
	prefix   string
	channel  string // of cancels
	reranked string // of changed priorities
	metrics  *metrics.Metrics
}

// NewCancels returns the overrides whose keys start with the prefix.
func NewCancels(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Cancels {
	return &Cancels{
		rdb: rdb, cfg: cfg.withDefaults(), prefix: prefix + "override:", channel: prefix + "cancels", reranked: prefix + "priorities",
		metrics: apply(opts).metrics,
	}
}

func (c *Cancels) key(k task.Key) string {
	h := k.Hash()
	return c.prefix + base64.RawURLEncoding.EncodeToString(h[:])
}

// Mark records that the tasks are cancelled and notifies watchers.
func (c *Cancels) Mark(ctx context.Context, keys ...task.Key) error {
	for part := range slices.Chunk(keys, maxCancels) {
		msg, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("marking %d tasks as cancelled: %w", len(part), err)
		}
		pipe := c.rdb.Pipeline()
		for _, k := range part {
			pipe.HSet(ctx, c.key(k), "c", 1)
			pipe.PExpire(ctx, c.key(k), c.cfg.CancelTTL)
		}
		pipe.Publish(ctx, c.channel, msg)
		if _, err := pipe.Exec(ctx); err != nil {
			c.metrics.Device.RedisErrors.WithLabelValues("cancel").Inc()
			return fmt.Errorf("marking %d tasks as cancelled in Redis: %w", len(part), err)
		}
	}
	return nil
}

// Repriority changes the rank of a task.
type Repriority struct {
	Key      task.Key
	Priority task.Priority // empty: unchanged
	Level    int           // below 0: unchanged
}

// Apply changes the task and reports whether that made a difference.
func (r *Repriority) Apply(t *task.Task) bool {
	p, l := t.Priority, t.Level
	if r.Priority != "" {
		t.Priority = r.Priority
	}
	if r.Level >= 0 {
		t.Level = r.Level
	}
	return t.Priority != p || t.Level != l
}

// Zero reports whether it changes nothing.
func (r *Repriority) Zero() bool { return r.Priority == "" && r.Level < 0 }

// Rerank records a change of priority and notifies watchers. What r leaves unchanged stays
// as an earlier call set it.
func (c *Cancels) Rerank(ctx context.Context, r Repriority) error {
	var fields []any
	if r.Priority != "" {
		fields = append(fields, "p", string(r.Priority))
	}
	if r.Level >= 0 {
		fields = append(fields, "l", r.Level)
	}
	if len(fields) == 0 {
		return nil
	}
	msg, err := json.Marshal([]task.Key{r.Key})
	if err != nil {
		return fmt.Errorf("changing the priority of task %s: %w", r.Key, err)
	}
	pipe := c.rdb.Pipeline()
	pipe.HSet(ctx, c.key(r.Key), fields...)
	pipe.PExpire(ctx, c.key(r.Key), c.cfg.CancelTTL)
	pipe.Publish(ctx, c.reranked, msg)
	if _, err := pipe.Exec(ctx); err != nil {
		c.metrics.Device.RedisErrors.WithLabelValues("priority").Inc()
		return fmt.Errorf("changing the priority of task %s in Redis: %w", r.Key, err)
	}
	return nil
}

// Mark is what operators want of a task that has not finished.
type Mark struct {
	Cancelled bool
	Repriority
}

// Marks returns the override of each task, in one round trip.
func (c *Cancels) Marks(ctx context.Context, keys ...task.Key) ([]Mark, error) {
	out := make([]Mark, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	began := time.Now()
	pipe := c.rdb.Pipeline()
	cmds := make([]*redis.SliceCmd, len(keys))
	for i, k := range keys {
		cmds[i] = pipe.HMGet(ctx, c.key(k), "c", "p", "l")
	}
	_, err := pipe.Exec(ctx)
	c.metrics.Device.RedisSeconds.WithLabelValues("marks").Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		c.metrics.Device.RedisErrors.WithLabelValues("cancelled").Inc()
		return nil, fmt.Errorf("reading the overrides of %d tasks from Redis: %w", len(keys), err)
	}
	for i, k := range keys {
		out[i] = parseMark(k, cmds[i].Val())
	}
	return out, nil
}

// parseMark parses an override; another program may have written it.
func parseMark(k task.Key, v []any) Mark {
	m := Mark{Repriority: Repriority{Key: k, Level: -1}}
	if len(v) != 3 {
		return m
	}
	m.Cancelled = v[0] != nil
	if p, ok := v[1].(string); ok && slices.Contains(task.Priorities, task.Priority(p)) {
		m.Priority = task.Priority(p)
	}
	if l, ok := v[2].(string); ok {
		if n, err := strconv.Atoi(l); err == nil && n >= 0 && n <= task.MaxLevel {
			m.Level = n
		}
	}
	return m
}

// Marked reports which of the tasks are cancelled, in one round trip.
func (c *Cancels) Marked(ctx context.Context, keys ...task.Key) ([]bool, error) {
	marks, err := c.Marks(ctx, keys...)
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(marks))
	for i := range marks {
		out[i] = marks[i].Cancelled
	}
	return out, nil
}

// Watch calls onCancel with tasks that were cancelled. It calls onGap after every connect
// and reconnect, because messages may have been missed: holders of tasks should then call
// Marked. It returns when ctx ends.
func (c *Cancels) Watch(ctx context.Context, onCancel func(keys []task.Key), onGap func()) error {
	return watch(ctx, c.rdb, c.channel, keysOf(onCancel), onGap)
}

// WatchRanks calls onRerank with tasks whose priority changed. Call Marks for the new
// priority: messages may arrive in a different order than the overrides were written.
// onGap is as for Watch.
func (c *Cancels) WatchRanks(ctx context.Context, onRerank func(keys []task.Key), onGap func()) error {
	return watch(ctx, c.rdb, c.reranked, keysOf(onRerank), onGap)
}

func keysOf(fn func([]task.Key)) func(payload string) {
	return func(p string) {
		if keys := parseKeys(p); len(keys) > 0 {
			fn(keys)
		}
	}
}

// parseKeys parses a message; nil if it is not one of ours.
func parseKeys(payload string) []task.Key {
	if strings.Count(payload, "{") > 2*maxCancels {
		return nil
	}
	var keys []task.Key
	if json.Unmarshal([]byte(payload), &keys) != nil {
		return nil
	}
	return keys
}
