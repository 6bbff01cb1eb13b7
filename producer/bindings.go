package producer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/task"
)

// bindings remembers in Redis what the ids submitted lately were submitted for, so that of two processes
// that get different requests under one id at the same time, one refuses. It covers the moments until
// Postgres knows an id; Redis may lose it.
//
// As with the claims of the routers, bindings are fields of a few hashes that expire as a whole: one
// lives for one to two ttl.
type bindings struct {
	rdb    redis.UniversalClient // nil: nothing is remembered
	ttl    time.Duration
	prefix string
	now    func() time.Time
}

// Shape of the hashes.
const (
	bindingShards = 16
	bindingPrint  = 16 // bytes of the fingerprint
)

func (b *bindings) enabled() bool { return b.rdb != nil && b.ttl > 0 }

func (b *bindings) bucket(epoch int64, shard byte) string {
	return b.prefix + "bound:" + strconv.FormatInt(epoch, 36) + ":" + strconv.Itoa(int(shard)%bindingShards)
}

// bind binds each id to a fingerprint, and reports which are bound to another. It takes one round trip.
func (b *bindings) bind(ctx context.Context, keys []task.Key, prints []task.Fingerprint) (other []bool, err error) {
	epoch := b.now().UnixNano() / int64(b.ttl)
	pipe := b.rdb.Pipeline()
	before, now := make([]*redis.StringCmd, len(keys)), make([]*redis.StringCmd, len(keys))
	buckets := map[string]struct{}{}
	for i, k := range keys {
		h := k.Hash()
		field, bucket := string(h[:]), b.bucket(epoch, h[0])
		before[i] = pipe.HGet(ctx, b.bucket(epoch-1, h[0]), field)
		pipe.HSetNX(ctx, bucket, field, prints[i][:bindingPrint])
		now[i] = pipe.HGet(ctx, bucket, field)
		buckets[bucket] = struct{}{}
	}
	for bucket := range buckets {
		pipe.PExpire(ctx, bucket, 2*b.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("binding %d task ids in Redis: %w", len(keys), err)
	}
	other = make([]bool, len(keys))
	for i := range keys {
		own := string(prints[i][:bindingPrint])
		if have, err := before[i].Result(); err == nil { // the older binding counts
			other[i] = have != own
		} else if have, err := now[i].Result(); err == nil {
			other[i] = have != own
		}
	}
	return other, nil
}
