package router

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// claims remembers in Redis which record speaks for a task. The value is the
// record's position: the same record read again is no duplicate, another record
// with the same identity is.
//
// A claim lives between one and two ttl, so the memory of all claims grows with
// the rate of tasks and not with their number. They are fields of a few hashes,
// not keys: a hash ends as a whole, and a field costs about 70 bytes. When a
// claim is lost (Redis emptied) or has ended, a second record runs a second
// time, and Postgres still takes only the first result.
type claims struct {
	rdb    redis.UniversalClient
	prefix string
	ttl    time.Duration
	now    func() time.Time
}

// claimShards spreads the hashes over the nodes of a Redis Cluster.
const claimShards = 16

// bucket is the hash of a claim that was taken in the given epoch, an epoch
// being ttl long.
func (c *claims) bucket(epoch int64, field []byte) string {
	return c.prefix + "claims:" + strconv.FormatInt(epoch, 36) + ":" + strconv.Itoa(int(field[0])%claimShards)
}

// field names a claim: 16 bytes of the identity's digest. The count of requeues
// is part of it: a task that Batchyard itself has written again is a new record
// of the same task, not a duplicate.
func (c *claims) field(it *item) []byte {
	h := it.task.Key().Hash()
	if n := it.task.Requeues(); n > 0 {
		return strconv.AppendInt(h[:], int64(n), 36)
	}
	return h[:]
}

// take claims each task for its record and reports which are claimed by another
// record. One round trip, and a second one if some were claimed before.
func (c *claims) take(ctx context.Context, items []*item) (taken []bool, err error) {
	epoch := c.now().UnixNano() / int64(c.ttl)
	type answer struct {
		bucket, field string
		before        *redis.StringCmd // of the epoch before
		set           *redis.BoolCmd
		now           *redis.StringCmd
	}
	as := make([]answer, len(items))
	buckets := map[string]struct{}{}
	pipe := c.rdb.Pipeline()
	for i, it := range items {
		f := c.field(it)
		a := &as[i]
		a.bucket, a.field = c.bucket(epoch, f), string(f)
		a.before = pipe.HGet(ctx, c.bucket(epoch-1, f), a.field)
		a.set = pipe.HSetNX(ctx, a.bucket, a.field, it.rec.Position())
		buckets[a.bucket] = struct{}{}
	}
	for b := range buckets {
		pipe.PExpire(ctx, b, 2*c.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("claiming %d tasks in Redis: %w", len(items), err)
	}
	pipe = c.rdb.Pipeline()
	for i, it := range items {
		a := &as[i]
		if err := a.before.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("reading a claim in Redis: %w", err)
		}
		switch err := a.set.Err(); {
		case err != nil:
			return nil, fmt.Errorf("claiming a task in Redis: %w", err)
		case !a.set.Val(): // somebody has it: a duplicate, or we ourselves before a restart
			a.now = pipe.HGet(ctx, a.bucket, a.field)
		case a.before.Err() == nil && a.before.Val() != it.rec.Position():
			// The older claim speaks on in this epoch too. Were ours left there, its
			// record, read again in the next epoch, would pass for a duplicate of
			// ours, which is dropped: the task would be lost.
			pipe.HSet(ctx, a.bucket, a.field, a.before.Val())
		}
	}
	if pipe.Len() > 0 {
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("reading claims in Redis: %w", err)
		}
	}
	taken = make([]bool, len(items))
	for i, it := range items {
		mine := it.rec.Position()
		if before, err := as[i].before.Result(); err == nil { // the older claim speaks
			taken[i] = before != mine
			continue
		}
		if as[i].now != nil {
			if now, err := as[i].now.Result(); err == nil {
				taken[i] = now != mine
			}
		}
	}
	return taken, nil
}
