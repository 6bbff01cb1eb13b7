package recorder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/batchyard/batchyard/audit"
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
//	             ├── still owned: reclaim, drop the records below the offset in Postgres
//	             │
//	             └── the offset went back: Postgres lost what it had confirmed. Write that down
//	                 (breaks.go), drop the records, acquire all partitions of the topic again
//
// The fence also answers whether a commit whose reply was lost has happened: if it has, the offset
// has advanced. What a process held when it died is read again by the next owner of the partition,
// from the offset in Postgres.

// ownership is the period in which this process owns a partition: from one Acquire to the next.
// epoch, next and stale belong to the writer that has a chunk of the partition.
type ownership struct {
	audit.TopicPartition
	epoch int64
	next  int64 // offset of the first record that is not recorded; -1: the first there is
	stale bool  // the partition has to be acquired again before more is recorded

	// read is the offset after the last record that was put into the queue. Only the goroutine that
	// reads the partition uses it.
	read int64
}

// offsets are the offsets in Postgres of this process's partitions. It is the stream's OffsetStore.
type offsets struct {
	pool     *pgxpool.Pool
	instance string
	retry    func(ctx context.Context, do func(context.Context) error) error
	topics   topics // nil: there is no log
	breaks   breaks

	mu        sync.Mutex
	owned     map[audit.TopicPartition]*ownership // bounded by the number of partitions
	confirmed map[audit.TopicPartition]confirmed
	behind    map[audit.TopicPartition]time.Time // since when a log is shorter than what was recorded of it
	ids       map[string]stream.Identity         // of the topics, when they were last acquired
	restart   map[string]func()                  // ends the consumer of a topic, which then acquires its partitions again
}

func newOffsets(pool *pgxpool.Pool, instance string, retry func(context.Context, func(context.Context) error) error) *offsets {
	return &offsets{
		pool: pool, instance: instance, retry: retry, breaks: breaks{noticed: func(context.Context, *audit.Break) {}},
		owned: map[audit.TopicPartition]*ownership{}, confirmed: map[audit.TopicPartition]confirmed{}, behind: map[audit.TopicPartition]time.Time{},
		ids: map[string]stream.Identity{}, restart: map[string]func(){},
	}
}

// current returns the latest ownership of a partition; nil if the process never owned it.
func (o *offsets) current(topic string, partition int) *ownership {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.owned[audit.PartitionOf(topic, partition)]
}

// acquireAgain makes the consumers leave their groups and join them again, so that all partitions are
// read from their offsets in Postgres.
func (o *offsets) acquireAgain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, again := range o.restart {
		again()
	}
}

// onRestart sets how the consumer of a topic is ended while it runs. It must not block.
func (o *offsets) onRestart(topic string, again func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.restart[topic] = again
}

// ended notes that the consumer of a topic does not run.
func (o *offsets) ended(topic string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.restart, topic)
}

// reclaim reads how far a partition is recorded that this process still owns, after a chunk did
// not pass the fence. A transaction of this process whose reply was lost may be committing at this
// moment: the upsert waits for its row lock.
//
// If the offset is lower than what Postgres had confirmed, Postgres has lost it: a replica that
// lagged was promoted, or a backup was restored. The loss is written down, and the partition is
// stale: its records are dropped and read again from Kafka. If the process dies before, the next
// owner reads them from the offset in Postgres, too.
//
// A twin that believes it owns the partition may do the same. That does no harm: each of them only
// ever writes the records that follow what is recorded.
func (o *offsets) reclaim(ctx context.Context, part *ownership) error {
	var lost *audit.Break
	var now confirmed
	err := pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
		row, err := takeOver(ctx, tx, part.TopicPartition, o.instance)
		if err != nil {
			return fmt.Errorf("reading how far %s is recorded: %w", part, err)
		}
		now = confirmed{row.next, row.end.Rows}
		if lost, err = o.lostSince(part.TopicPartition, &row); err != nil {
			return err
		}
		if lost == nil {
			part.next, part.epoch = row.next, row.epoch
			return nil
		}
		return o.breaks.write(ctx, tx, lost, &row.end, o.instance)
	})
	if err != nil {
		return err
	}
	if lost == nil {
		return nil
	}
	part.stale = true
	o.confirm(part.TopicPartition, now)
	o.breaks.noticed(ctx, lost)
	o.acquireAgain() // the other partitions have lost something, too
	return nil
}

// confirmed is what Postgres has confirmed to this process: where recording continues, and how many
// rows the chain has.
type confirmed struct{ next, rows int64 }

func (o *offsets) confirm(at audit.TopicPartition, c confirmed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.confirmed[at] = c
}

func (o *offsets) confirmedOf(at audit.TopicPartition) (c confirmed, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c, ok = o.confirmed[at]
	return c, ok
}

// lostSince compares what is in Postgres with what it has confirmed to this process. It returns what
// is lost; nil for nothing.
func (o *offsets) lostSince(at audit.TopicPartition, row *offsetRow) (*audit.Break, error) {
	had, ok := o.confirmedOf(at)
	if !ok || row.next >= had.next {
		return nil, nil
	}
	if at.Topic == stream.Events && had.rows > 0 && row.end.Rows >= had.rows {
		return nil, fmt.Errorf("%s was at %d and is at %d, but the rows from there on are still in audit_log: %w", at, had.next, row.next, errOffsetsSetBack)
	}
	return &audit.Break{
		Kind: audit.RecordedAgain, Topic: at.Topic, Partition: at.Partition, Seq: row.end.Rows + 1, First: max(row.next, 0), Last: had.next - 1,
		LostRows: max(0, had.rows-row.end.Rows), Why: "Postgres had confirmed these records and has lost them, as after a failover to a replica that lagged",
	}, nil
}

// lookForLoss reads the offsets of this process's partitions, and has them acquired again if one is lower than
// Postgres has confirmed: partitions that nothing is written to do not reach the fence.
func (o *offsets) lookForLoss(ctx context.Context) {
	rows, err := o.pool.Query(ctx, "SELECT topic, partition, next_offset FROM stream_offsets WHERE owner = $1", o.instance)
	if err != nil {
		return // writers report that Postgres is away
	}
	defer rows.Close()
	for rows.Next() {
		var at audit.TopicPartition
		var next int64
		if rows.Scan(&at.Topic, &at.Partition, &next) != nil {
			return
		}
		if had, ok := o.confirmedOf(at); ok && next < had.next {
			o.acquireAgain()
			return
		}
	}
}

// errOffsetsSetBack says that someone changed stream_offsets by hand.
var errOffsetsSetBack = errors.New("stream_offsets was changed by hand: recording again would repeat the rows; set next_offset to what it was, and restart this process")

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

// append appends what the log says about the advance: someone who sets an offset in Postgres forward has records left
// out, and then the next advance does not follow the one before.
func (a advance) append(b []byte) []byte {
	for _, part := range a.parts() {
		d := audit.Advance{Key: audit.KeyOfPartition(part.TopicPartition), Epoch: part.epoch, From: part.next, To: a[part]}
		b = d.Append(b)
	}
	return b
}

func (a advance) parts() []*ownership {
	return slices.SortedFunc(maps.Keys(a), func(x, y *ownership) int {
		return cmp.Or(cmp.Compare(x.Topic, y.Topic), cmp.Compare(x.Partition, y.Partition))
	})
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
