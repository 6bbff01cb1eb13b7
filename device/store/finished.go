package store

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// finishedBucket is how many offsets of a partition share a key.
const finishedBucket = 1024

// finishedTTL is how long marks are kept: longer than it takes until another worker has the partitions of one that died.
const finishedTTL = 2 * time.Minute

// Mark says that a task of a batch is finished: what it became is on all in-sync replicas.
type Mark struct {
	Partition int
	Offset    int64  // of the record of its batch
	Batch     string // which is unique, so that marks of an older topic mean nothing
	Index     int    // in the batch
}

// member is the mark in its bucket.
func (m *Mark) member() string { return m.Batch + "/" + strconv.Itoa(m.Index) }

// Finished remembers for a while which tasks of which records are finished, at once and not only when offsets are committed.
// The next owner of a partition does not run them again after its worker was killed. It only saves requests: without
// Redis, they are made twice.
type Finished struct {
	conn
	prefix string
}

// NewFinished returns the marks whose keys start with the prefix.
func NewFinished(rdb redis.UniversalClient, prefix string, opts ...Option) *Finished {
	return &Finished{prefix: prefix + "finished:", conn: open(rdb, opts)}
}

func (f *Finished) key(partition int, offset int64) string {
	return fmt.Sprintf("%s%d:%d", f.prefix, partition, offset/finishedBucket)
}

// Mark writes marks, in one round trip.
func (f *Finished) Mark(ctx context.Context, marks []Mark) error {
	by := map[string][]any{}
	for i := range marks {
		m := &marks[i]
		k := f.key(m.Partition, m.Offset)
		by[k] = append(by[k], m.member())
	}
	pipe := f.rdb.Pipeline()
	for k, members := range by {
		pipe.SAdd(ctx, k, members...)
		pipe.PExpire(ctx, k, finishedTTL)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		f.metrics.Device.RedisErrors.WithLabelValues("finished").Inc()
		return fmt.Errorf("marking %d tasks as finished in Redis: %w", len(marks), err)
	}
	return nil
}

// Marks are those of a part of a partition.
type Marks struct {
	partition int
	bucket    int64
	members   map[string]struct{}
}

// Cover reports whether these are the marks that a record may have.
func (m *Marks) Cover(partition int, offset int64) bool {
	return m != nil && m.partition == partition && m.bucket == offset/finishedBucket
}

// Has reports whether a task is finished.
func (m *Marks) Has(mark *Mark) bool {
	if m == nil {
		return false
	}
	_, ok := m.members[mark.member()]
	return ok
}

// Load reads the marks that a record may have, and its neighbours.
func (f *Finished) Load(ctx context.Context, partition int, offset int64) (*Marks, error) {
	members, err := f.rdb.SMembersMap(ctx, f.key(partition, offset)).Result()
	if err != nil {
		f.metrics.Device.RedisErrors.WithLabelValues("finished").Inc()
		return nil, fmt.Errorf("reading which tasks of partition %d are finished from Redis: %w", partition, err)
	}
	return &Marks{partition: partition, bucket: offset / finishedBucket, members: members}, nil
}
