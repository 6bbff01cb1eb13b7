package router

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/router/decide"
)

// claims remembers in Redis which record speaks for a task. The value is the record's position: the
// same record read again is no duplicate, another record with the same identity is one.
//
// A claim lives for one to two ttl, so the memory of all claims grows with the rate of tasks and not
// with their number. Claims are fields of a few hashes, not keys: a hash expires as a whole, and a field
// costs about 70 bytes. If a claim was lost (Redis was emptied) or has expired, a second record runs a
// second time, and the recorder still takes only the first result.
type claims struct {
	rdb    redis.UniversalClient
	prefix string
	ttl    time.Duration
	now    func() time.Time
}

// claimShards spreads the hashes over the nodes of a Redis Cluster.
const claimShards = 16

// bucket is the hash of a claim taken in the given epoch, which is one ttl long.
func (c *claims) bucket(epoch int64, field []byte) string {
	return c.prefix + "claims:" + strconv.FormatInt(epoch, 36) + ":" + strconv.Itoa(int(field[0])%claimShards)
}

// claimField names a claim: 16 bytes of the identity's digest, and the number of requeues, because
// a task that Batchyard itself has written again is a new record of it, not a duplicate.
func claimField(it *decide.Item) []byte {
	h := it.Task.Key().Hash()
	if n := it.Task.Requeues(); n > 0 {
		return strconv.AppendInt(h[:], int64(n), 36)
	}
	return h[:]
}

// claim is one claim under way.
type claim struct {
	record        string // position of the record that claims
	bucket, field string
	before        *redis.StringCmd // value in the previous epoch
	set           *redis.BoolCmd   // whether the claim is new in this epoch
	now           *redis.StringCmd // value in this epoch, if it is not new
}

// taken reports whether another record holds the claim.
func (a *claim) taken() bool {
	if before, err := a.before.Result(); err == nil { // the older claim counts
		return before != a.record
	}
	if a.now != nil {
		if now, err := a.now.Result(); err == nil {
			return now != a.record
		}
	}
	return false
}

// take claims each task for its record, and reports which are claimed by another record. It takes one
// round trip, and a second one if some were claimed before.
func (c *claims) take(ctx context.Context, items []*decide.Item) (taken []bool, err error) {
	as, err := c.claimAll(ctx, items)
	if err != nil {
		return nil, err
	}
	pipe := c.rdb.Pipeline()
	for i := range as {
		a := &as[i]
		if err := a.before.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("reading a claim in Redis: %w", err)
		}
		switch err := a.set.Err(); {
		case err != nil:
			return nil, fmt.Errorf("claiming a task in Redis: %w", err)
		case !a.set.Val(): // a duplicate, or this record before a restart
			a.now = pipe.HGet(ctx, a.bucket, a.field)
		case a.before.Err() == nil && a.before.Val() != a.record:
			// Carry the older claim over into this epoch. If ours stayed there, the older claim's
			// record, read again in the next epoch, would be taken for a duplicate of ours, which is
			// dropped: the task would be lost.
			pipe.HSet(ctx, a.bucket, a.field, a.before.Val())
		}
	}
	if pipe.Len() > 0 {
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("reading claims in Redis: %w", err)
		}
	}
	taken = make([]bool, len(items))
	for i := range as {
		taken[i] = as[i].taken()
	}
	return taken, nil
}

// claimAll sets the claims that are free in this epoch, and reads those of the previous one.
func (c *claims) claimAll(ctx context.Context, items []*decide.Item) ([]claim, error) {
	epoch := c.now().UnixNano() / int64(c.ttl)
	as := make([]claim, len(items))
	buckets := map[string]struct{}{}
	pipe := c.rdb.Pipeline()
	for i, it := range items {
		f := claimField(it)
		a := &as[i]
		a.record, a.bucket, a.field = originOf(it).rec.Position(), c.bucket(epoch, f), string(f)
		a.before = pipe.HGet(ctx, c.bucket(epoch-1, f), a.field)
		a.set = pipe.HSetNX(ctx, a.bucket, a.field, a.record)
		buckets[a.bucket] = struct{}{}
	}
	for b := range buckets {
		pipe.PExpire(ctx, b, 2*c.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("claiming %d tasks in Redis: %w", len(items), err)
	}
	return as, nil
}
