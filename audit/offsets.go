package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/internal/fault"
)

// tenure is the time in which this process owns a partition: from one Acquire to
// the next. epoch and next belong to the writer that has a chunk of it.
type tenure struct {
	topic     string
	partition int
	epoch     int64
	next      int64 // offset of the first record that is not recorded; -1: the first there is

	// read is the offset after the last record that was handed to the writer. Only
	// the goroutine that reads the partition uses it.
	read int64
}

func (t *tenure) String() string { return fmt.Sprintf("%s/%d", t.topic, t.partition) }

// offsets are the offsets of this process's partitions in Postgres. It is the
// stream's OffsetStore.
type offsets struct {
	pool  *pgxpool.Pool
	owner string
	retry func(ctx context.Context, do func(context.Context) error) error

	mu  sync.Mutex
	own map[string]*tenure // by topic/partition; as many as there are partitions
}

const acquireSQL = `
INSERT INTO stream_offsets AS o (topic, partition, epoch, owner) VALUES ($1, $2, 1, $3)
ON CONFLICT (topic, partition) DO UPDATE SET epoch = o.epoch + 1, owner = excluded.owner, updated_at = now()
RETURNING next_offset, epoch`

// Acquire takes a partition over: the next epoch is ours, and whoever wrote for
// the one before cannot any more. It waits until Postgres answers.
func (o *offsets) Acquire(ctx context.Context, topic string, partition int) (int64, error) {
	t := &tenure{topic: topic, partition: partition}
	err := o.retry(ctx, func(ctx context.Context) error {
		return o.pool.QueryRow(ctx, acquireSQL, topic, partition, o.owner).Scan(&t.next, &t.epoch)
	})
	if err != nil {
		return 0, fmt.Errorf("taking over %s: %w", t, err)
	}
	fault.At("audit.after_acquire")
	t.read = t.next
	o.mu.Lock()
	o.own[t.String()] = t
	o.mu.Unlock()
	return t.next, nil
}

// current is the tenure under which the partition was taken over last; nil when
// it never was.
func (o *offsets) current(topic string, partition int) *tenure {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.own[fmt.Sprintf("%s/%d", topic, partition)]
}

// errNotOurs says that a chunk did not match the offsets in Postgres, and for
// which partitions. The transaction was rolled back.
type errNotOurs struct{ parts []*tenure }

func (e *errNotOurs) Error() string {
	return fmt.Sprintf("%d partitions, %s among them, were written by another process, or by this one with an unknown outcome", len(e.parts), e.parts[0])
}

// errBehind says that Postgres has forgotten what it had confirmed.
var errBehind = errors.New("the offsets in Postgres went back, as after restoring an older state: what came since is read again from Kafka when this process starts anew")

const reclaimSQL = `
UPDATE stream_offsets SET epoch = epoch + 1, owner = $3, updated_at = now()
WHERE topic = $1 AND partition = $2 RETURNING next_offset, epoch`

// reclaim reads how far a partition is that is still ours. A transaction of ours
// whose answer was lost may be committing right now: the row's lock waits for it.
//
// A twin that believes to own the partition may do the same. No harm is done:
// each of them only ever writes the records that follow what is recorded.
func (o *offsets) reclaim(ctx context.Context, t *tenure) error {
	var next, epoch int64
	err := o.pool.QueryRow(ctx, reclaimSQL, t.topic, t.partition, o.owner).Scan(&next, &epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%s: %w", t, errBehind)
	}
	if err != nil {
		return fmt.Errorf("reading how far %s is: %w", t, err)
	}
	if next < t.next {
		return fmt.Errorf("%s was at %d, is at %d: %w", t, t.next, next, errBehind)
	}
	t.next, t.epoch = next, epoch
	return nil
}
