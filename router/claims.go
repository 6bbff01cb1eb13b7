package router

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/task"
)

// claims remembers in Redis which record speaks for a task. The value is the
// record's position: the same record read again is no duplicate, another record
// with the same identity is.
//
// A claim is short-lived, so its memory grows with the rate of tasks and not
// with their number. When it is lost (Redis emptied) or has ended, a second
// record runs a second time, and Postgres still takes only the first result.
type claims struct {
	rdb    redis.UniversalClient
	prefix string
	ttl    time.Duration
}

// key names a claim. The count of requeues is part of it: a task that Batchyard
// itself has written again is a new record of the same task, not a duplicate.
func (c *claims) key(k task.Key, requeues int) string {
	h := k.Hash()
	s := c.prefix + "claim:" + base64.RawURLEncoding.EncodeToString(h[:])
	if requeues > 0 {
		s += ":" + strconv.Itoa(requeues)
	}
	return s
}

// take claims each task for its record, in one round trip, and reports which
// are claimed by another record.
func (c *claims) take(ctx context.Context, items []*item) (taken []bool, err error) {
	pipe := c.rdb.Pipeline()
	sets := make([]*redis.BoolCmd, len(items))
	for i, it := range items {
		sets[i] = pipe.SetNX(ctx, c.key(it.task.Key(), it.task.Requeues()), it.rec.Position(), c.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("claiming %d tasks in Redis: %w", len(items), err)
	}
	taken = make([]bool, len(items))
	var gets []*redis.StringCmd
	var at []int
	pipe = c.rdb.Pipeline()
	for i, s := range sets {
		if !s.Val() { // somebody has it: a duplicate, or we ourselves before a restart
			gets = append(gets, pipe.Get(ctx, c.key(items[i].task.Key(), items[i].task.Requeues())))
			at = append(at, i)
		}
	}
	if len(gets) == 0 {
		return taken, nil
	}
	if _, err := pipe.Exec(ctx); err != nil && err != redis.Nil { //nolint:errorlint // Exec returns the first command's own error
		return nil, fmt.Errorf("reading %d claims in Redis: %w", len(gets), err)
	}
	for j, g := range gets {
		v, err := g.Result()
		if err != nil { // it ended between the two steps: nobody holds it
			continue
		}
		taken[at[j]] = v != items[at[j]].rec.Position()
	}
	return taken, nil
}
