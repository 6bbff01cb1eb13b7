package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/stream/internal/murmur"
	"github.com/batchyard/batchyard/stream/internal/trouble"
)

const (
	// maxInFlight is how many requests may be in flight to one broker. One per partition keeps
	// the order; a few per broker hide the round trip.
	maxInFlight = 3
	// maxBatchBytes and maxRequestBytes bound a request, except when a single message is larger.
	maxBatchBytes   = 1 << 20
	maxRequestBytes = 8 << 20
)

// receiver learns the outcome of a message: nil when all in-sync replicas have it, an error when
// they never will. It must not block.
type receiver interface{ delivered(err error) }

// entry is a message that waits to be written or acknowledged.
type entry struct {
	msg       Message
	size      int
	at        time.Time
	to        receiver
	abandoned *atomic.Bool // no caller waits for it: need not be sent
}

// queue is the messages that wait to be written to one partition. Guarded by producer.mu.
type queue struct {
	topic     Topic
	partition int32
	entries   []entry
	queued    bool // in producer.ready, or waits for its backoff
	sending   bool
	limit     int  // messages in the next batch, while searching for one that is too large; 0: no limit
	alone     bool // after an error: share no request with other partitions
	failures  int

	untimedUntil time.Time // until then, messages go without timestamps: the broker refused one
}

type topicPartition struct {
	topic     string
	partition int32
}

// producer writes messages. The package comment draws their path.
type producer struct {
	cl          *Client
	ctx         context.Context
	compression kafka.Compression
	room        *semaphore.Weighted
	trouble     *trouble.Trouble // partitions whose latest request did not go through
	wg          sync.WaitGroup

	mu       sync.Mutex
	queues   map[topicPartition]*queue
	ready    []*queue
	inFlight map[int32]int // requests by leader
	closed   bool
}

func newProducer(ctx context.Context, cl *Client, c kafka.Compression) *producer {
	return &producer{
		cl: cl, ctx: ctx, compression: c,
		trouble:  trouble.New(cl.logger, cl.metrics.Stream.BrokerUnreachable.WithLabelValues("produce")),
		room:     semaphore.NewWeighted(cl.cfg.BufferBytes),
		queues:   map[topicPartition]*queue{},
		inFlight: map[int32]int{},
	}
}

// Produce writes messages and returns when all in-sync replicas have all of them. Retriable
// errors are retried until ctx ends; then some messages may have been written nevertheless. A
// message that is larger than its topic allows yields a *TooLargeError; the others are written.
func (cl *Client) Produce(ctx context.Context, msgs ...Message) error {
	if len(msgs) == 0 {
		return nil
	}
	c := &produceCall{done: make(chan struct{})}
	c.waiting.Store(int64(len(msgs)))
	batch := make([]routed, 0, len(msgs))
	for i := range msgs {
		p, err := cl.producer.route(ctx, msgs[i], anyPartition)
		if err != nil {
			var tooLarge *TooLargeError
			if !errors.As(err, &tooLarge) {
				return err // nothing has been handed over
			}
			c.delivered(err)
			continue
		}
		p.entry.to, p.entry.abandoned = c, &c.abandoned
		batch = append(batch, p)
	}
	for len(batch) > 0 {
		n, err := cl.producer.enqueue(ctx, batch)
		if err != nil {
			c.abandoned.Store(true)
			return fmt.Errorf("writing to topic %s: %w", batch[0].topic.Name, err)
		}
		batch = batch[n:]
	}
	select {
	case <-c.done:
		return c.err()
	case <-ctx.Done():
		c.abandoned.Store(true)
		if last, failing := cl.producer.trouble.Oldest(); failing {
			return fmt.Errorf("writing to topic %s: %w; last error: %w", msgs[0].Topic, ctx.Err(), last.Err)
		}
		return fmt.Errorf("writing to topic %s: %w", msgs[0].Topic, ctx.Err())
	}
}

// produceCall collects the outcomes of the messages of one Produce.
type produceCall struct {
	waiting   atomic.Int64
	abandoned atomic.Bool
	done      chan struct{}
	mu        sync.Mutex
	errs      []error // the first few
}

func (c *produceCall) delivered(err error) {
	if err != nil {
		c.mu.Lock()
		if len(c.errs) < 8 {
			c.errs = append(c.errs, err)
		}
		c.mu.Unlock()
	}
	if c.waiting.Add(-1) == 0 {
		close(c.done)
	}
}

func (c *produceCall) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.errs...)
}

// routed is a message whose partition is chosen.
type routed struct {
	entry     entry
	topic     Topic
	partition int32
}

// anyPartition makes route choose the partition of the message's key.
const anyPartition int32 = -1

// route signs a message, chooses its partition, and refuses a message that is too large for its
// topic. want is a partition or anyPartition.
func (p *producer) route(ctx context.Context, m Message, want int32) (routed, error) {
	t, err := findTopic(m.Topic)
	if err != nil {
		return routed{}, fmt.Errorf("writing a message: %w", err)
	}
	if !m.Verbatim {
		m.Sign(p.cl.signer)
	}
	size := m.Size()
	if int64(size)+batchOverhead > t.MaxBytes {
		return routed{}, &TooLargeError{Topic: t.Name, Size: size, Limit: t.MaxBytes}
	}
	n, err := p.cl.layout.Partitions(ctx, t.Name)
	if err != nil {
		return routed{}, fmt.Errorf("writing to topic %s: %w", t.Name, err)
	}
	if want < 0 || want >= int32(n) {
		want = partitionOfMessage(&m, n)
	}
	return routed{entry: entry{msg: m, size: size}, topic: t, partition: want}, nil
}

// batchOverhead is the size of a record batch's header, with room to spare.
const batchOverhead = 128

// partitionOf chooses the partition of a key like the Java client does, by murmur2. Messages
// without a key go to a random partition.
func partitionOf(key string, n int) int32 {
	if key == "" {
		return rand.Int32N(int32(n))
	}
	return murmur.Partition(key, n)
}

// PartitionOf returns the partition of a key's messages; below 0 while the topic's partitions are unknown.
func (cl *Client) PartitionOf(topic, key string) int {
	n := len(cl.layout.Leaders(topic))
	if n == 0 {
		return -1
	}
	return int(partitionOf(key, n))
}

func partitionOfMessage(m *Message, n int) int32 {
	if m.EmptyKey {
		return murmur.Partition(m.Key, n)
	}
	return partitionOf(m.Key, n)
}

// enqueue waits until there is room for the first message of the batch, hands over as many as
// fit, and returns how many.
func (p *producer) enqueue(ctx context.Context, batch []routed) (int, error) {
	size := p.weight(batch[0].entry.size)
	if err := p.room.Acquire(ctx, size); err != nil {
		return 0, err
	}
	n := 1
	for n < len(batch) && p.room.TryAcquire(p.weight(batch[n].entry.size)) {
		n++
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		for i := range n {
			p.room.Release(p.weight(batch[i].entry.size))
		}
		return 0, ErrClosed
	}
	for i := range batch[:n] {
		b := &batch[i]
		b.entry.at = now
		q := p.queueOf(b.topic, b.partition)
		q.entries = append(q.entries, b.entry)
		p.makeReady(q)
	}
	p.dispatch()
	return n, nil
}

// weight returns how much of kafka.buffer_bytes a message takes; a message larger than the whole
// buffer takes all of it.
func (p *producer) weight(size int) int64 { return min(int64(size), p.cl.cfg.BufferBytes) }

// makeReady puts a queue on the list of those to be sent. The caller holds mu.
func (p *producer) makeReady(q *queue) {
	if !q.queued && !q.sending && len(q.entries) > 0 {
		q.queued = true
		p.ready = append(p.ready, q)
	}
}

// dispatch starts as many requests as are allowed. The caller holds mu.
func (p *producer) dispatch() {
	if p.closed {
		return
	}
	var gone []*queue
	requests := map[int32]*request{}
	rest := p.ready[:0]
	for _, q := range p.ready {
		leader := int32(-1)
		if leaders := p.cl.layout.Leaders(q.topic.Name); int(q.partition) < len(leaders) {
			leader = leaders[q.partition]
		} else if len(leaders) > 0 {
			gone = append(gone, q)
			continue
		}
		r := requests[leader]
		switch {
		case p.inFlight[leader] >= maxInFlight, r != nil && (r.bytes >= maxRequestBytes || q.alone || r.alone):
			rest = append(rest, q)
			continue
		case r == nil:
			r = &request{leader: leader, alone: q.alone}
			requests[leader] = r
		}
		q.queued = false
		if batch := q.nextBatch(p); len(batch) > 0 {
			q.sending = true
			r.bytes += sizeOf(batch)
			r.parts = append(r.parts, part{q: q, entries: batch, untimed: time.Now().Before(q.untimedUntil)})
		}
	}
	clear(p.ready[len(rest):])
	p.ready = rest
	for leader, r := range requests {
		if len(r.parts) == 0 {
			continue
		}
		p.inFlight[leader]++
		p.wg.Go(func() { p.send(r) })
	}
	if len(gone) > 0 {
		p.moveAll(gone)
		p.dispatch()
	}
}

// moveAll moves the messages for partitions that no longer exist, because their topic was recreated with
// fewer, to the partitions of their keys. The caller holds mu.
func (p *producer) moveAll(gone []*queue) {
	for _, q := range gone {
		n := len(p.cl.layout.Leaders(q.topic.Name))
		entries := q.entries
		q.entries, q.queued = nil, false
		p.markRecovered(q)
		for _, e := range entries {
			to := p.queueOf(q.topic, partitionOfMessage(&e.msg, n))
			to.entries = append(to.entries, e)
			p.makeReady(to)
		}
	}
}

// queueOf returns the queue of a partition. The caller holds mu.
func (p *producer) queueOf(t Topic, partition int32) *queue {
	key := topicPartition{t.Name, partition}
	q := p.queues[key]
	if q == nil {
		q = &queue{topic: t, partition: partition}
		p.queues[key] = q
	}
	return q
}

// nextBatch removes the messages of the next batch from the queue. The caller holds mu.
func (q *queue) nextBatch(p *producer) []entry {
	limit := q.limit
	if limit == 0 {
		limit = len(q.entries)
	}
	maxBytes := int(min(maxBatchBytes, q.topic.MaxBytes-batchOverhead))
	bytes, n := 0, 0
	batch := make([]entry, 0, min(limit, 1024))
	for n < len(q.entries) && len(batch) < limit {
		e := q.entries[n]
		if e.abandoned != nil && e.abandoned.Load() {
			n++
			p.room.Release(p.weight(e.size))
			continue
		}
		if len(batch) > 0 && bytes+e.size > maxBytes {
			break
		}
		bytes += e.size
		batch = append(batch, e)
		n++
	}
	if n == len(q.entries) {
		q.entries = nil // free the memory of a backlog
	} else {
		q.entries = q.entries[n:]
	}
	return batch
}

func sizeOf(batch []entry) int {
	n := 0
	for i := range batch {
		n += batch[i].size
	}
	return n
}

// close fails the waiting messages, and waits for the requests in flight, whose context has ended.
func (p *producer) close() {
	p.mu.Lock()
	p.closed = true
	var rest []entry
	for _, q := range p.queues {
		rest = append(rest, q.entries...)
		q.entries = nil
	}
	p.ready = nil
	p.mu.Unlock()
	for i := range rest {
		p.room.Release(p.weight(rest[i].size))
		rest[i].to.delivered(ErrClosed)
	}
	p.wg.Wait()
}
