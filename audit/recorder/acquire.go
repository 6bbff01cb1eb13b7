package recorder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream"
)

// An offset in Postgres belongs to one topic. If the topic was deleted and created again, or another
// cluster is behind the same address, the offset means nothing there: records below it would be
// skipped. Acquire therefore compares what the topic is with what is stored next to the offset:
//
//	same topic, offset within the log ──▶ continue there
//	another topic                     ──▶ write it down, start at its beginning; the chain continues
//	same topic, but the log is shorter ─▶ wait: a broker that takes over may not know the end yet
//	      still shorter after a while ──▶ the log lost its end: write it down, continue at its end
const (
	// behindPatience is how long a log may be shorter than what was recorded of it: a new leader
	// learns the end of the log once the replicas that are gone are out of sync.
	behindPatience = time.Minute
	// recreatedMargin is how much later than the last recording the first record of a topic must have
	// been written to show, without ids, that the topic is another one. Clocks differ.
	recreatedMargin = time.Minute
	// watchInterval is how often a running recorder looks for topics that were replaced and rows that
	// were lost.
	watchInterval = 10 * time.Second
)

// topics is what Acquire needs to know of the log; *stream.Client.
type topics interface {
	Identity(ctx context.Context, topic string) (stream.Identity, error)
	Bounds(ctx context.Context, topic string, partition int) (first, end int64, err error)
	ScanRange(ctx context.Context, topic string, partition int, from, to int64, fn func(*stream.Record) error) error
}

// offsetRow is a row of stream_offsets with the end of the chain.
type offsetRow struct {
	next, epoch int64
	id          stream.Identity
	recorded    time.Time
	end         chainEnd
}

// updated_at is left alone: it says when something was recorded.
const takeOverSQL = `
INSERT INTO stream_offsets AS o (topic, partition, epoch, owner) VALUES ($1, $2, 1, $3)
ON CONFLICT (topic, partition) DO UPDATE SET epoch = o.epoch + 1, owner = excluded.owner
RETURNING next_offset, epoch, topic_id, cluster_id, updated_at`

// takeOver starts a new epoch of a partition, so that the previous owner cannot write any more.
func takeOver(ctx context.Context, tx pgx.Tx, at audit.TopicPartition, instance string) (r offsetRow, err error) {
	err = tx.QueryRow(ctx, takeOverSQL, at.Topic, at.Partition, instance).Scan(&r.next, &r.epoch, &r.id.Topic, &r.id.Cluster, &r.recorded)
	if err != nil {
		return r, err
	}
	var b pgx.Batch
	ends := chains{}
	ends.queueReadOf(&b, []string{at.Topic}, []int32{at.Partition})
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return r, err
	}
	if end := ends[at]; end != nil {
		r.end = *end
	}
	return r, nil
}

// Acquire takes a partition over and returns the offset to read from. It starts a new epoch, so
// the previous owner cannot write any more. It waits until Postgres answers; an error says that Kafka
// does not, and the stream tries again.
func (o *offsets) Acquire(ctx context.Context, topic string, partition int) (int64, error) {
	part := &ownership{TopicPartition: audit.PartitionOf(topic, partition)}
	log, err := o.lookUp(ctx, part.TopicPartition)
	if err != nil {
		return 0, fmt.Errorf("taking over %s: %w", part, err)
	}
	var broken []*audit.Break
	var rows int64
	var refused error
	err = o.retry(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, o.pool, func(tx pgx.Tx) error {
			row, err := takeOver(ctx, tx, part.TopicPartition, o.instance)
			if err != nil {
				return err
			}
			part.next, part.epoch = row.next, row.epoch
			broken, refused = o.breaksOf(part.TopicPartition, &row, log)
			if refused != nil {
				return nil //nolint:nilerr // not Postgres' fault: it is returned below, without another try
			}
			err = o.adopt(ctx, tx, part, log, broken, &row.end)
			rows = row.end.Rows
			return err
		})
	})
	if err = errors.Join(err, refused); err != nil {
		return 0, fmt.Errorf("taking over %s: %w", part, err)
	}
	fault.At("audit.after_acquire")
	o.confirm(part.TopicPartition, confirmed{part.next, rows})
	for _, k := range broken {
		o.breaks.noticed(ctx, k)
	}
	part.read = part.next
	if log != nil {
		part.read = max(0, part.next) // if the log begins later, what was before is a hole
	}
	o.mu.Lock()
	o.owned[part.TopicPartition] = part
	if log != nil {
		o.ids[topic] = log.id
	}
	o.mu.Unlock()
	return part.read, nil
}

// breaksOf returns why recording does not simply continue; none if it does.
func (o *offsets) breaksOf(at audit.TopicPartition, row *offsetRow, log *logView) (all []*audit.Break, err error) {
	lost, err := o.lostSince(at, row)
	if err != nil {
		return nil, err
	}
	if lost != nil {
		all = append(all, lost)
	}
	if log == nil {
		return all, nil
	}
	replaced, err := o.compare(at, row, log)
	if err != nil {
		return nil, err
	}
	if replaced != nil {
		all = append(all, replaced)
	}
	return all, nil
}

// logView is what a partition looks like in Kafka.
type logView struct {
	id         stream.Identity
	first, end int64
	firstAt    time.Time // when its first record was written; zero: it has none
}

func (o *offsets) lookUp(ctx context.Context, at audit.TopicPartition) (*logView, error) {
	if o.topics == nil {
		return nil, nil
	}
	id, err := o.topics.Identity(ctx, at.Topic)
	if err != nil {
		return nil, err
	}
	v := &logView{id: id}
	if v.first, v.end, err = o.topics.Bounds(ctx, at.Topic, int(at.Partition)); err != nil {
		return nil, err
	}
	if id.Topic != "" || v.first >= v.end {
		return v, nil
	}
	err = o.topics.ScanRange(ctx, at.Topic, int(at.Partition), v.first, v.first+1, func(r *stream.Record) error {
		v.firstAt = r.Time
		return nil
	})
	return v, err
}

// errBehind says that a log is shorter than what was recorded of it.
var errBehind = errors.New("waiting for Kafka to know the end of the log again, as after a broker was lost")

// compare decides whether recording continues at the offset in Postgres. If it does not, the break
// says why. An error means that it is too early to tell.
func (o *offsets) compare(at audit.TopicPartition, row *offsetRow, log *logView) (*audit.Break, error) {
	broken := &audit.Break{Kind: audit.TopicReplaced, Topic: at.Topic, Partition: at.Partition, Seq: row.end.Rows + 1, First: row.next, Last: audit.UnknownOffset}
	old, now := row.id, log.id
	switch {
	case row.next <= 0: // nothing was recorded of the other topic either
		return nil, nil
	case old.Topic != "" && now.Topic != "" && old.Topic != now.Topic:
		broken.Why = fmt.Sprintf("the topic has the id %s, and what was recorded came from %s: it was deleted and created again, or Kafka is another cluster", now.Topic, old.Topic)
	case old.Topic != "" && old.Topic == now.Topic:
		if row.next <= log.end {
			o.setBehind(at, time.Time{})
			return nil, nil
		}
		return o.shorter(broken, row, log)
	case old.Cluster != "" && now.Cluster != "" && old.Cluster != now.Cluster:
		broken.Why = fmt.Sprintf("Kafka is the cluster %s, and what was recorded came from %s", now.Cluster, old.Cluster)
	case !log.firstAt.IsZero() && log.first < row.next && log.firstAt.After(row.recorded.Add(recreatedMargin)):
		broken.Why = fmt.Sprintf("the first record of the topic was written at %s, after the last one was recorded: the topic was deleted and created again", log.firstAt.UTC().Format(time.RFC3339))
	case row.next > log.end:
		return o.shorter(broken, row, log)
	default:
		return nil, nil
	}
	return broken, nil
}

// shorter is for a log that ends below the offset in Postgres.
func (o *offsets) shorter(broken *audit.Break, row *offsetRow, log *logView) (*audit.Break, error) {
	since := o.behindSince(broken.At())
	if time.Since(since) < behindPatience {
		return nil, fmt.Errorf("it is recorded up to offset %d, but ends at %d: %w", row.next, log.end, errBehind)
	}
	o.setBehind(broken.At(), time.Time{})
	broken.First, broken.Last = log.end, row.next-1
	broken.Why = fmt.Sprintf("the log ends at offset %d: it lost its last records, which are recorded, or the topic was deleted and created again", log.end)
	return broken, nil
}

// behindSince returns since when the log of a partition is too short; at the first time, now.
func (o *offsets) behindSince(at audit.TopicPartition) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.behind[at].IsZero() {
		o.behind[at] = time.Now()
	}
	return o.behind[at]
}

func (o *offsets) setBehind(at audit.TopicPartition, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.behind[at] = since
}

const adoptSQL = `UPDATE stream_offsets SET topic_id = $3, cluster_id = $4, next_offset = $5 WHERE topic = $1 AND partition = $2`

// adopt stores which topic the offset belongs to, and after a break where recording continues.
func (o *offsets) adopt(ctx context.Context, tx pgx.Tx, part *ownership, log *logView, broken []*audit.Break, end *chainEnd) error {
	for _, k := range broken {
		if k.Kind == audit.TopicReplaced {
			part.next = -1
			if k.Last != audit.UnknownOffset {
				part.next = log.end
			}
		}
		if err := o.breaks.write(ctx, tx, k, end, o.instance); err != nil {
			return err
		}
	}
	if log == nil {
		return nil
	}
	_, err := tx.Exec(ctx, adoptSQL, part.Topic, part.Partition, log.id.Topic, log.id.Cluster, part.next)
	return err
}

// missed returns what is between the last record that was read and the next one at offset, if the log no
// longer has it, else nil: the markers of transactions take offsets without being records.
func (o *offsets) missed(ctx context.Context, part *ownership, offset int64) (*audit.Break, error) {
	first := offset
	if o.topics != nil {
		var err error
		if first, _, err = o.topics.Bounds(ctx, part.Topic, int(part.Partition)); err != nil {
			return nil, errAcquireAgain // and look again then
		}
	}
	if first <= part.read {
		return nil, nil
	}
	return holeOf(part, part.read, min(first, offset)-1), nil
}

func holeOf(part *ownership, first, last int64) *audit.Break {
	return &audit.Break{Kind: audit.RecordsMissed, Topic: part.Topic, Partition: part.Partition, First: first, Last: last, Why: "Kafka deleted them before they were recorded"}
}

// watch looks at intervals, until ctx ends, for what no record would bring to light: a topic that was
// deleted and created again and is longer than what was read of the old one, and rows that Postgres
// has lost of partitions that nothing is written to.
func (o *offsets) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.lookForLoss(ctx)
			o.lookForOtherTopics(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (o *offsets) lookForOtherTopics(ctx context.Context) {
	for _, topic := range []string{stream.Events, stream.Results} {
		o.mu.Lock()
		had := o.ids[topic]
		o.mu.Unlock()
		now, err := o.topics.Identity(ctx, topic)
		if err == nil && had.Topic != "" && now.Topic != "" && now.Topic != had.Topic {
			o.acquireAgain()
			return
		}
	}
}
