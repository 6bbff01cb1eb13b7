package stream

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/semaphore"
)

const (
	// maxInFlight is how many requests may be under way to one broker. One per
	// partition is enough to keep order; a few per broker hide the round trip.
	maxInFlight = 3
	// maxBatchBytes and maxRequestBytes bound what leaves in one request, a
	// single larger message excepted.
	maxBatchBytes   = 1 << 20
	maxRequestBytes = 8 << 20

	minBackoff = 20 * time.Millisecond
	maxBackoff = time.Second
)

// receiver hears what became of a message: nil when all in-sync replicas have
// it, an error when they never will. It must not block.
type receiver interface{ delivered(err error) }

// entry is a message on its way.
type entry struct {
	msg  Message
	size int
	at   time.Time
	to   receiver
	gone *atomic.Bool // nobody waits for it any more: need not be sent
}

// queue is one partition's messages that wait to be written. Under producer.mu.
type queue struct {
	topic     Topic
	partition int32
	entries   []entry
	queued    bool // is in producer.ready, or waits for its timer
	sending   bool
	limit     int  // messages in the next batch while one that is too large is looked for; 0: no limit
	alone     bool // after an error: do not share the request
	failures  int
}

type queueKey struct {
	topic     string
	partition int32
}

// producer writes messages: see the package comment.
type producer struct {
	l           *Log
	ctx         context.Context
	compression kafka.Compression
	room        *semaphore.Weighted
	wg          sync.WaitGroup

	mu       sync.Mutex
	queues   map[queueKey]*queue
	ready    []*queue
	inFlight map[int32]int // requests by leader
	failing  int           // partitions whose latest request did not go through
	lastErr  error         // of one of them
	closed   bool
}

func newProducer(ctx context.Context, l *Log, c kafka.Compression) *producer {
	return &producer{
		l: l, ctx: ctx, compression: c,
		room:     semaphore.NewWeighted(l.cfg.BufferBytes),
		queues:   map[queueKey]*queue{},
		inFlight: map[int32]int{},
	}
}

// Produce writes messages and returns when all in-sync replicas have each of
// them. What may be retried is retried until ctx ends; then some of them may
// have been written all the same. One that is larger than its topic takes
// yields a *TooLargeError and keeps none of the others from being written.
func (l *Log) Produce(ctx context.Context, msgs ...Message) error {
	if len(msgs) == 0 {
		return nil
	}
	c := &call{done: make(chan struct{})}
	c.waiting.Store(int64(len(msgs)))
	batch := make([]placed, 0, len(msgs))
	for i := range msgs {
		p, err := l.producer.place(ctx, msgs[i], -1)
		if err != nil {
			var tooLarge *TooLargeError
			if !errors.As(err, &tooLarge) {
				return err // nothing was handed over yet
			}
			c.delivered(err)
			continue
		}
		p.entry.to, p.entry.gone = c, &c.gone
		batch = append(batch, p)
	}
	for len(batch) > 0 {
		n, err := l.producer.enqueue(ctx, batch)
		if err != nil {
			c.gone.Store(true)
			return fmt.Errorf("writing to topic %s: %w", batch[0].topic.Name, err)
		}
		batch = batch[n:]
	}
	select {
	case <-c.done:
		return c.err()
	case <-ctx.Done():
		c.gone.Store(true)
		if last := l.producer.problem(); last != nil {
			return fmt.Errorf("writing to topic %s: %w; the last attempt: %w", msgs[0].Topic, ctx.Err(), last)
		}
		return fmt.Errorf("writing to topic %s: %w", msgs[0].Topic, ctx.Err())
	}
}

// call gathers what becomes of the messages of one Produce.
type call struct {
	waiting atomic.Int64
	gone    atomic.Bool
	done    chan struct{}
	mu      sync.Mutex
	errs    []error // the first few
}

func (c *call) delivered(err error) {
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

func (c *call) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.errs...)
}

// placed is a message whose partition is chosen.
type placed struct {
	entry     entry
	topic     Topic
	partition int32
}

// place chooses the partition, that of the key when want is negative, and
// refuses what the topic cannot take.
func (p *producer) place(ctx context.Context, m Message, want int32) (placed, error) {
	t, err := findTopic(m.Topic)
	if err != nil {
		return placed{}, fmt.Errorf("writing a message: %w", err)
	}
	size := m.size()
	if int64(size)+batchOverhead > t.MaxBytes {
		return placed{}, &TooLargeError{Topic: t.Name, Size: size, Limit: t.MaxBytes}
	}
	n, err := p.l.layout.partitions(ctx, t.Name)
	if err != nil {
		return placed{}, fmt.Errorf("writing to topic %s: %w", t.Name, err)
	}
	if want < 0 || want >= int32(n) {
		want = partitionOf(m.Key, n)
	}
	return placed{entry: entry{msg: m, size: size}, topic: t, partition: want}, nil
}

// batchOverhead is the head of a record batch, with room to spare.
const batchOverhead = 128

// partitionOf chooses as the Java client does: murmur2 of the key.
func partitionOf(key string, n int) int32 {
	if key == "" {
		return rand.Int32N(int32(n))
	}
	return int32((murmur2(key) & 0x7fffffff) % uint32(n))
}

// enqueue hands over the first messages of batch, as many as there is room for
// at once, waiting for room for the first; it returns how many.
func (p *producer) enqueue(ctx context.Context, batch []placed) (int, error) {
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
		key := queueKey{b.topic.Name, b.partition}
		q := p.queues[key]
		if q == nil {
			q = &queue{topic: b.topic, partition: b.partition}
			p.queues[key] = q
		}
		q.entries = append(q.entries, b.entry)
		p.makeReady(q)
	}
	p.dispatch()
	return n, nil
}

// weight is what a message takes of the room; one larger than all of it takes all.
func (p *producer) weight(size int) int64 { return min(int64(size), p.l.cfg.BufferBytes) }

// makeReady lists a queue to be sent. The caller holds mu.
func (p *producer) makeReady(q *queue) {
	if !q.queued && !q.sending && len(q.entries) > 0 {
		q.queued = true
		p.ready = append(p.ready, q)
	}
}

// dispatch starts as many requests as may be under way. The caller holds mu.
func (p *producer) dispatch() {
	if p.closed {
		return
	}
	requests := map[int32]*request{}
	rest := p.ready[:0]
	for _, q := range p.ready {
		leader := int32(-1)
		if leaders := p.l.layout.leaders(q.topic.Name); int(q.partition) < len(leaders) {
			leader = leaders[q.partition]
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
		if batch := q.take(p); len(batch) > 0 {
			q.sending = true
			r.bytes += sizeOf(batch)
			r.parts = append(r.parts, part{q: q, entries: batch})
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
}

// take removes the messages of the next batch from the queue. The caller holds mu.
func (q *queue) take(p *producer) []entry {
	limit := q.limit
	if limit == 0 {
		limit = len(q.entries)
	}
	maxBytes := int(min(maxBatchBytes, q.topic.MaxBytes-batchOverhead))
	bytes, n := 0, 0
	batch := make([]entry, 0, min(limit, 1024))
	for n < len(q.entries) && len(batch) < limit {
		e := q.entries[n]
		if e.gone != nil && e.gone.Load() {
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
		q.entries = nil // a backlog that is gone frees its memory
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

// problem is why something cannot be written at present; nil when all can.
func (p *producer) problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastErr
}

// close fails what waits and waits for the requests under way, whose context
// has ended.
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

// bucketOf spreads hashes over n buckets.
func bucketOf(b []byte, n int) int {
	h := fnv.New32a()
	_, _ = h.Write(b)
	return int(h.Sum32() % uint32(n))
}
