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

// maxCancels bounds the tasks of one message.
const maxCancels = 1000

// Cancels is which tasks somebody wants to have stopped, or to go earlier or
// later than they were submitted for. It makes both quick; that a cancelled task
// stays cancelled is the result's doing, and that a task keeps its new priority
// the doing of the router that holds it.
//
// A task has one mark, a small hash with a time to live: c says that it is
// cancelled, p and l are its new priority and level.
type Cancels struct {
	rdb      redis.UniversalClient
	cfg      Config
	prefix   string
	channel  string // of cancels
	reranked string // of changed priorities
	metrics  *metrics.Metrics
}

// NewCancels returns the marks under the prefix.
func NewCancels(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Cancels {
	return &Cancels{
		rdb: rdb, cfg: cfg.withDefaults(), prefix: prefix + "mark:", channel: prefix + "cancels", reranked: prefix + "priorities",
		metrics: apply(opts).metrics,
	}
}

func (c *Cancels) key(k task.Key) string {
	h := k.Hash()
	return c.prefix + base64.RawURLEncoding.EncodeToString(h[:])
}

// Mark remembers that the tasks are to be stopped and tells who watches.
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

// Repriority is a task that is to go earlier or later.
type Repriority struct {
	Key      task.Key
	Priority task.Priority // empty: as it was
	Level    int           // below 0: as it was
}

// Apply changes the task, and reports whether that made a difference.
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

// Zero reports whether there is nothing to change.
func (r *Repriority) Zero() bool { return r.Priority == "" && r.Level < 0 }

// Rerank remembers that a task is to go earlier or later and tells who watches.
// What it leaves as it was stays as an earlier call made it.
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

// Mark is what somebody wants of a task that is on its way.
type Mark struct {
	Cancelled bool
	Repriority
}

// Marks says of each task what somebody wants of it, in one round trip.
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
		return nil, fmt.Errorf("asking Redis what is wanted of %d tasks: %w", len(keys), err)
	}
	for i, k := range keys {
		out[i] = parseMark(k, cmds[i].Val())
	}
	return out, nil
}

// parseMark reads a mark; another program may have written it.
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

// Marked says of each task whether it is to be stopped, in one round trip.
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

// Watch calls onCancel with the tasks that are to be stopped. It calls onGap
// after every (re)connect: messages may have been missed, and who holds tasks
// should ask with Marked. It returns when ctx ends.
func (c *Cancels) Watch(ctx context.Context, onCancel func(keys []task.Key), onGap func()) error {
	return watch(ctx, c.rdb, c.channel, keysOf(onCancel), onGap)
}

// WatchRanks calls onRerank with the tasks that are to go earlier or later: ask
// with Marks what they are to be now, because of two changes the messages may
// come in another order than the marks were set in. onGap is as for Watch.
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

// parseKeys reads a message; none for what is no message of ours.
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
