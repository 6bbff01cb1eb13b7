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

// claims remembers in Redis which record speaks for a task, and what the task asks. The value is the
// beginning of the task's fingerprint and the record's position: the same record read again is no
// duplicate; another record with the same identity is one if it asks the same. If it does not, the id is
// contested, and Postgres says whose it is. A claim alone refuses no record: it may be lost and taken by the
// other, and both might then be refused.
//
// A claim lives for one to two ttl, so the memory of all claims grows with the rate of tasks and not
// with their number. Claims are fields of a few hashes, not keys: a hash expires as a whole, and a field
// costs about 90 bytes. If a claim was lost (Redis was emptied) or has expired, Postgres says whether the
// task has been answered and what it asked (see [Router.lookUp]).
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

// claimField names a claim: 16 bytes of the identity's digest, the generation, and the number of
// requeues, because a task that Batchyard itself has written again is a new record of it, not a
// duplicate.
func claimField(it *decide.Item) []byte {
	h := it.Task.Key().Hash()
	f := h[:]
	if n := it.Task.Generation(); n > 0 {
		f = strconv.AppendInt(append(f, 'g'), int64(n), 36)
	}
	if n := it.Task.Requeues(); n > 0 {
		f = strconv.AppendInt(append(f, 'r'), int64(n), 36)
	}
	return f
}

// claimPrint is how many bytes of the fingerprint a claim holds.
const claimPrint = 16

// claimValue is what a claim says: what the task asks, and which record asked it.
func claimValue(it *decide.Item) string {
	return string(it.Fingerprint[:claimPrint]) + originOf(it).rec.Position()
}

// verdict is what claiming a task for a record has shown.
type verdict int

const (
	claimed   verdict = iota // the record speaks for the task
	reclaimed                // it already did: it was read before, by a process that died or lost the partition
	duplicate                // another record does, and asks the same
	contested                // another record does, and asks something else: Postgres has to say whose id it is
	reused                   // the id belongs to another request
	answered                 // the task has ended: Postgres has its result
	reread                   // answered, and this is the record that was run, or a requeued copy of it
)

// judge compares the value of a claim with the one that a record would have written.
func judge(have, own string) verdict {
	switch {
	case have == own:
		return reclaimed
	case len(have) >= claimPrint && have[:claimPrint] == own[:claimPrint]:
		return duplicate
	}
	return contested
}

// claim is one claim under way.
type claim struct {
	value         string // what the record would claim
	bucket, field string
	before        *redis.StringCmd // value in the previous epoch
	set           *redis.BoolCmd   // whether the claim is new in this epoch
	now           *redis.StringCmd // value in this epoch, if it is not new
}

// verdict says who holds the claim.
func (a *claim) verdict() verdict {
	if before, err := a.before.Result(); err == nil { // the older claim counts
		return judge(before, a.value)
	}
	if a.now != nil {
		if now, err := a.now.Result(); err == nil {
			return judge(now, a.value)
		}
	}
	return claimed
}

// take claims each task for its record. It takes one round trip, and a second one if some were claimed
// before.
func (c *claims) take(ctx context.Context, items []*decide.Item) ([]verdict, error) {
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
		case a.before.Err() == nil && a.before.Val() != a.value:
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
	out := make([]verdict, len(items))
	for i := range as {
		out[i] = as[i].verdict()
	}
	return out, nil
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
		a.value, a.bucket, a.field = claimValue(it), c.bucket(epoch, f), string(f)
		a.before = pipe.HGet(ctx, c.bucket(epoch-1, f), a.field)
		a.set = pipe.HSetNX(ctx, a.bucket, a.field, a.value)
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
