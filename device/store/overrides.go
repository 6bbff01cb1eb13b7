package store

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

	"github.com/batchyard/batchyard/device"
	"github.com/batchyard/batchyard/task"
)

// maxMessageTasks is how many tasks one message may list.
const maxMessageTasks = 1000

// Overrides holds the operators' overrides: which tasks to cancel, and which to run sooner
// or later than submitted. They only make these changes fast: a cancelled task stays
// cancelled because of its result, and a task keeps its new priority because the router
// that holds it writes it down.
//
// The override of a task is a small hash with a time to live: c means cancelled, p and l
// are the new priority and level. A message on a channel reaches the processes that may
// hold the task.
type Overrides struct {
	conn
	cfg        Config
	prefix     string
	channel    string // of cancels
	priorities string // of changed priorities
}

// NewOverrides returns the overrides whose keys start with the prefix.
func NewOverrides(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Overrides {
	return &Overrides{
		cfg: cfg.withDefaults(), prefix: prefix + "override:", channel: prefix + "cancels", priorities: prefix + "priorities",
		conn: open(rdb, opts),
	}
}

func (o *Overrides) key(k task.Key) string {
	h := k.Hash()
	return o.prefix + base64.RawURLEncoding.EncodeToString(h[:])
}

// Cancel records that the tasks are cancelled and notifies watchers.
func (o *Overrides) Cancel(ctx context.Context, keys ...task.Key) error {
	for part := range slices.Chunk(keys, maxMessageTasks) {
		msg, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("marking %d tasks as cancelled: %w", len(part), err)
		}
		pipe := o.rdb.Pipeline()
		for _, k := range part {
			pipe.HSet(ctx, o.key(k), "c", 1)
			pipe.PExpire(ctx, o.key(k), o.cfg.CancelTTL)
		}
		pipe.Publish(ctx, o.channel, msg)
		if _, err := pipe.Exec(ctx); err != nil {
			o.metrics.Device.RedisErrors.WithLabelValues("cancel").Inc()
			return fmt.Errorf("marking %d tasks as cancelled in Redis: %w", len(part), err)
		}
	}
	return nil
}

// Clear forgets the override of a task that is to run again.
func (o *Overrides) Clear(ctx context.Context, k task.Key) error {
	if err := o.rdb.Del(ctx, o.key(k)).Err(); err != nil {
		o.metrics.Device.RedisErrors.WithLabelValues("cancel").Inc()
		return fmt.Errorf("clearing the override of task %s in Redis: %w", k, err)
	}
	return nil
}

// Reprioritize records a change of priority and notifies watchers. What r leaves unchanged
// stays as an earlier call set it.
func (o *Overrides) Reprioritize(ctx context.Context, r device.PriorityChange) error {
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
	pipe := o.rdb.Pipeline()
	pipe.HSet(ctx, o.key(r.Key), fields...)
	pipe.PExpire(ctx, o.key(r.Key), o.cfg.CancelTTL)
	pipe.Publish(ctx, o.priorities, msg)
	if _, err := pipe.Exec(ctx); err != nil {
		o.metrics.Device.RedisErrors.WithLabelValues("priority").Inc()
		return fmt.Errorf("changing the priority of task %s in Redis: %w", r.Key, err)
	}
	return nil
}

// Get returns the override of each task, in one round trip.
func (o *Overrides) Get(ctx context.Context, keys ...task.Key) ([]device.Override, error) {
	out := make([]device.Override, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	began := time.Now()
	pipe := o.rdb.Pipeline()
	cmds := make([]*redis.SliceCmd, len(keys))
	for i, k := range keys {
		cmds[i] = pipe.HMGet(ctx, o.key(k), "c", "p", "l")
	}
	_, err := pipe.Exec(ctx)
	o.metrics.Device.RedisSeconds.WithLabelValues("overrides").Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		o.metrics.Device.RedisErrors.WithLabelValues("cancelled").Inc()
		return nil, fmt.Errorf("reading the overrides of %d tasks from Redis: %w", len(keys), err)
	}
	for i, k := range keys {
		out[i] = parseOverride(k, cmds[i].Val())
	}
	return out, nil
}

// parseOverride parses an override; another program may have written it.
func parseOverride(k task.Key, v []any) device.Override {
	m := device.Override{PriorityChange: device.PriorityChange{Key: k, Level: -1}}
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

// Cancelled reports which of the tasks are cancelled, in one round trip.
func (o *Overrides) Cancelled(ctx context.Context, keys ...task.Key) ([]bool, error) {
	overrides, err := o.Get(ctx, keys...)
	if err != nil {
		return nil, err
	}
	out := make([]bool, len(overrides))
	for i := range overrides {
		out[i] = overrides[i].Cancelled
	}
	return out, nil
}

// WatchCancels calls onCancel with tasks that were cancelled. It calls onGap after every
// connect and reconnect, because messages may have been missed: holders of tasks should
// then call Cancelled. It returns when ctx ends.
func (o *Overrides) WatchCancels(ctx context.Context, onCancel func(keys []task.Key), onGap func()) error {
	return o.watch(ctx, o.channel, keysOf(onCancel), onGap)
}

// WatchPriorities calls onChange with tasks whose priority changed. Call Get for the new
// priority: messages may arrive in a different order than the overrides were written.
// onGap is as for WatchCancels.
func (o *Overrides) WatchPriorities(ctx context.Context, onChange func(keys []task.Key), onGap func()) error {
	return o.watch(ctx, o.priorities, keysOf(onChange), onGap)
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
	if strings.Count(payload, "{") > 2*maxMessageTasks {
		return nil
	}
	var keys []task.Key
	if json.Unmarshal([]byte(payload), &keys) != nil {
		return nil
	}
	return keys
}
