package device

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/task"
)

// maxCancels bounds the tasks of one message.
const maxCancels = 1000

// Cancels is which tasks somebody wants to have stopped. It makes stopping
// quick; that a cancelled task stays cancelled is the result's doing.
type Cancels struct {
	rdb     redis.UniversalClient
	cfg     Config
	prefix  string
	channel string
	metrics *metrics.Metrics
}

// NewCancels returns the marks under the prefix.
func NewCancels(rdb redis.UniversalClient, cfg Config, prefix string, opts ...Option) *Cancels {
	return &Cancels{rdb: rdb, cfg: cfg.withDefaults(), prefix: prefix + "cancel:", channel: prefix + "cancels", metrics: apply(opts).metrics}
}

func (c *Cancels) key(k task.Key) string {
	h := k.Hash()
	return c.prefix + base64.RawURLEncoding.EncodeToString(h[:])
}

// Mark remembers that the tasks are to be stopped and tells who watches.
func (c *Cancels) Mark(ctx context.Context, keys ...task.Key) error {
	for len(keys) > 0 {
		part := keys[:min(len(keys), maxCancels)]
		keys = keys[len(part):]
		msg, err := json.Marshal(part)
		if err != nil {
			return fmt.Errorf("marking %d tasks as cancelled: %w", len(part), err)
		}
		pipe := c.rdb.Pipeline()
		for _, k := range part {
			pipe.Set(ctx, c.key(k), 1, c.cfg.CancelTTL)
		}
		pipe.Publish(ctx, c.channel, msg)
		if _, err := pipe.Exec(ctx); err != nil {
			c.metrics.Device.RedisErrors.WithLabelValues("cancel").Inc()
			return fmt.Errorf("marking %d tasks as cancelled in Redis: %w", len(part), err)
		}
	}
	return nil
}

// Marked says of each task whether it is to be stopped, in one round trip.
func (c *Cancels) Marked(ctx context.Context, keys ...task.Key) ([]bool, error) {
	out := make([]bool, len(keys))
	if len(keys) == 0 {
		return out, nil
	}
	pipe := c.rdb.Pipeline()
	cmds := make([]*redis.IntCmd, len(keys))
	for i, k := range keys {
		cmds[i] = pipe.Exists(ctx, c.key(k))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		c.metrics.Device.RedisErrors.WithLabelValues("cancelled").Inc()
		return nil, fmt.Errorf("asking Redis whether %d tasks are cancelled: %w", len(keys), err)
	}
	for i := range cmds {
		out[i] = cmds[i].Val() > 0
	}
	return out, nil
}

// Watch calls onCancel with the tasks that are to be stopped. It calls onGap
// after every (re)connect: messages may have been missed, and who holds tasks
// should ask with Marked. It returns when ctx ends.
func (c *Cancels) Watch(ctx context.Context, onCancel func(keys []task.Key), onGap func()) error {
	return watch(ctx, c.rdb, c.channel, func(p string) {
		var keys []task.Key
		if json.Unmarshal([]byte(p), &keys) == nil && len(keys) > 0 { // anything else is no message of ours
			onCancel(keys)
		}
	}, onGap)
}
