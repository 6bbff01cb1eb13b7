package recorder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
)

// The fence. Table stream_offsets holds, for each partition, the offset of the first record that
// is not recorded yet, and the epoch of the partition's owner. A chunk advances the offset from
// exactly the value at which its own records begin. If another process has written these records,
// the row does not match, and the whole transaction is rolled back.
//
//	             ┌────────────────── advanced ──────────────────┐
//	             ▼                                              │
//	Acquire ──▶ owned ──chunk──▶ UPDATE … WHERE next_offset = mine AND epoch = mine
//	  epoch+1    ▲                                              │ no such row
//	             │                                              ▼
//	             │                    the partition was lost: drop its records
//	             └── still owned: reclaim, drop the records below the offset in Postgres
//
// The fence also answers whether a commit whose reply was lost has happened: if it has, the offset
// has advanced. What a process held when it died is read again by the next owner of the partition,
// from the offset in Postgres.

// ownership is the period in which this process owns a partition: from one Acquire to the next.
// epoch and next belong to the writer that has a chunk of the partition.
type ownership struct {
	audit.TopicPartition
	epoch int64
	next  int64 // offset of the first record that is not recorded; -1: the first there is

	// read is the offset after the last record that was put into the queue. Only the goroutine that
	// reads the partition uses it.
	read int64
}

// offsets are the offsets in Postgres of this process's partitions. It is the stream's OffsetStore.
type offsets struct {
	pool     *pgxpool.Pool
	instance string
	retry    func(ctx context.Context, do func(context.Context) error) error

	mu    sync.Mutex
	owned map[audit.TopicPartition]*ownership // bounded by the number of partitions
}

func newOffsets(pool *pgxpool.Pool, instance string, retry func(context.Context, func(context.Context) error) error) *offsets {
	return &offsets{pool: pool, instance: instance, retry: retry, owned: map[audit.TopicPartition]*ownership{}}
}

const acquireSQL = `
INSERT INTO stream_offsets AS o (topic, partition, epoch, owner) VALUES ($1, $2, 1, $3)
ON CONFLICT (topic, partition) DO UPDATE SET epoch = o.epoch + 1, owner = excluded.owner, updated_at = now()
RETURNING next_offset, epoch`

// Acquire takes a partition over and returns the offset to read from. It starts a new epoch, so
// the previous owner cannot write any more. It waits until Postgres answers.
func (o *offsets) Acquire(ctx context.Context, topic string, partition int) (int64, error) {
	part := &ownership{TopicPartition: audit.PartitionOf(topic, partition)}
	err := o.retry(ctx, func(ctx context.Context) error {
		return o.pool.QueryRow(ctx, acquireSQL, topic, partition, o.instance).Scan(&part.next, &part.epoch)
	})
	if err != nil {
		return 0, fmt.Errorf("taking over %s: %w", part, err)
	}
	fault.At("audit.after_acquire")
	part.read = part.next
	o.mu.Lock()
	o.owned[part.TopicPartition] = part
	o.mu.Unlock()
	return part.next, nil
}

// current returns the latest ownership of a partition; nil if the process never owned it.
func (o *offsets) current(topic string, partition int) *ownership {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.owned[audit.PartitionOf(topic, partition)]
}

const reclaimSQL = `
UPDATE stream_offsets SET epoch = epoch + 1, owner = $3, updated_at = now()
WHERE topic = $1 AND partition = $2 RETURNING next_offset, epoch`

// reclaim reads how far a partition is recorded that this process still owns, after a chunk did
// not pass the fence. A transaction of this process whose reply was lost may be committing at this
// moment: the update waits for its row lock.
//
// A twin that believes it owns the partition may do the same. That does no harm: each of them only
// ever writes the records that follow what is recorded.
func (o *offsets) reclaim(ctx context.Context, part *ownership) error {
	var next, epoch int64
	err := o.pool.QueryRow(ctx, reclaimSQL, part.Topic, part.Partition, o.instance).Scan(&next, &epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s: %w", part, errOffsetsWentBack)
	}
	if err != nil {
		return fmt.Errorf("reading how far %s is recorded: %w", part, err)
	}
	if next < part.next {
		return fmt.Errorf("%s was at %d and is at %d: %w", part, part.next, next, errOffsetsWentBack)
	}
	part.next, part.epoch = next, epoch
	return nil
}

// errOffsetsWentBack says that Postgres has forgotten what it had confirmed.
var errOffsetsWentBack = errors.New("the offsets in Postgres went back, as after restoring a backup: restart this process, and it reads again from Kafka what came since")

// lostFenceError says that a chunk did not pass the fence, and for which partitions. The
// transaction was rolled back.
type lostFenceError struct{ parts []*ownership }

func (e *lostFenceError) Error() string {
	return fmt.Sprintf("%d partitions, %s among them, were written by another process, or by this one with an unknown outcome", len(e.parts), e.parts[0])
}

// advance is the offset to which a chunk advances each of its partitions.
type advance map[*ownership]int64

func (c chunk) advance() advance {
	to := advance{}
	for _, e := range c {
		to[e.part] = max(to[e.part], e.offset+1)
	}
	return to
}

// shard returns a number that no other writer's chunk has at the same time, here or in another
// process: that of a partition of the chunk, which its writer owns.
func (a advance) shard() int32 {
	lowest := int32(math.MaxInt32)
	for part := range a {
		n := 2 * part.Partition
		if part.Topic != stream.Events {
			n++
		}
		lowest = min(lowest, n)
	}
	return lowest
}

const fenceSQL = `
UPDATE stream_offsets o SET next_offset = u.next, updated_at = now()
FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[]) AS u (topic, partition, epoch, expected, next)
WHERE o.topic = u.topic AND o.partition = u.partition AND o.epoch = u.epoch AND o.next_offset = u.expected
RETURNING o.topic, o.partition`

// Queue adds the advance to a batch. Once the batch was sent, passed returns a *lostFenceError if
// an offset was not where its owner left it.
func (a advance) queue(b *pgx.Batch) (passed func() error) {
	n := len(a)
	topics, parts := make([]string, 0, n), make([]int32, 0, n)
	epochs, expected, next := make([]int64, 0, n), make([]int64, 0, n), make([]int64, 0, n)
	for part, to := range a {
		topics, parts = append(topics, part.Topic), append(parts, part.Partition)
		epochs, expected, next = append(epochs, part.epoch), append(expected, part.next), append(next, to)
	}
	advanced := make(map[audit.TopicPartition]bool, n)
	b.Queue(fenceSQL, topics, parts, epochs, expected, next).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var at audit.TopicPartition
			if err := rows.Scan(&at.Topic, &at.Partition); err != nil {
				return err
			}
			advanced[at] = true
		}
		return rows.Err()
	})
	return func() error {
		var lost []*ownership
		for part := range a {
			if !advanced[part.TopicPartition] {
				lost = append(lost, part)
			}
		}
		if len(lost) > 0 {
			return &lostFenceError{lost}
		}
		return nil
	}
}
