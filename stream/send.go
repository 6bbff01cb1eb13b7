package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream/internal/backoff"
	"github.com/batchyard/batchyard/stream/internal/produce"
)

// request is one produce request: batches for partitions with the same leader.
type request struct {
	leader int32
	parts  []part
	bytes  int
	alone  bool // for one partition only, after an error
}

// part is the batch of one partition in a request.
type part struct {
	q       *queue
	entries []entry
	untimed bool // without timestamps
	err     error
}

// send writes a request. Its messages are then delivered, permanently failed, or back at the
// front of their queues. If the process dies here, none of them has been acknowledged.
func (p *producer) send(r *request) {
	err := p.roundTrip(r)
	fault.At("stream.after_ack")
	retry := false
	for i := range r.parts {
		pt := &r.parts[i]
		if err != nil {
			pt.err = err
		}
		// Before the queue may send again, so that acknowledgements keep the partition's order.
		pt.complete(p)
		retry = retry || len(pt.entries) > 0
	}
	if retry {
		p.cl.layout.RefreshSoon()
	}
	p.finishRequest(r)
}

// complete notifies the receivers of finished messages, and keeps in pt.entries those that have
// to be sent again.
func (pt *part) complete(p *producer) {
	m := &p.cl.metrics.Stream
	switch {
	case pt.err == nil:
		now, bytes := time.Now(), 0
		seconds := m.ProduceSeconds.WithLabelValues(pt.q.topic.Name)
		for i := range pt.entries {
			bytes += len(pt.entries[i].msg.Value)
		}
		seconds.Observe(now.Sub(pt.entries[0].at).Seconds())
		m.Produced.WithLabelValues(pt.q.topic.Name).Add(float64(len(pt.entries)))
		m.ProducedBytes.WithLabelValues(pt.q.topic.Name).Add(float64(bytes))
	case isTooLarge(pt.err) && len(pt.entries) == 1:
		pt.err = &TooLargeError{Topic: pt.q.topic.Name, Size: pt.entries[0].size, Limit: pt.q.topic.MaxBytes}
		m.ProduceErrors.WithLabelValues(pt.q.topic.Name).Inc()
	case isPermanent(pt.err) && len(pt.entries) == 1:
		pt.err = fmt.Errorf("writing to topic %s: %w", pt.q.topic.Name, pt.err)
		m.ProduceErrors.WithLabelValues(pt.q.topic.Name).Inc()
	case p.ctx.Err() != nil:
		pt.err = ErrClosed
	default:
		m.ProduceErrors.WithLabelValues(pt.q.topic.Name).Inc()
		return
	}
	for i := range pt.entries {
		p.room.Release(p.weight(pt.entries[i].size))
		pt.entries[i].to.delivered(pt.err)
	}
	pt.entries = nil
}

// finishRequest puts back the messages to be sent again and starts the next requests.
func (p *producer) finishRequest(r *request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight[r.leader]--
	for i := range r.parts {
		pt := &r.parts[i]
		q := pt.q
		q.sending = false
		if len(pt.entries) == 0 {
			p.markRecovered(q)
			// The message that is too large was isolated, or the batch went through:
			// grow the batches again.
			if q.limit *= 2; q.limit > 1024 || pt.err != nil {
				q.limit = 0
			}
			p.makeReady(q)
			continue
		}
		if p.closed {
			p.wg.Go(func() { failAll(p, pt.entries) }) // not under mu
			continue
		}
		q.entries = append(pt.entries, q.entries...)
		if errors.Is(pt.err, kafka.InvalidTimestamp) && !pt.untimed {
			p.omitTimestamps(q)
			p.makeReady(q)
			continue
		}
		if isTooLarge(pt.err) || isPermanent(pt.err) {
			// One message is to blame: halve the batch until it is alone.
			q.limit = max(1, len(pt.entries)/2)
			p.makeReady(q)
			continue
		}
		q.alone = len(r.parts) > 1
		p.trouble.Report(q.what(), pt.err)
		p.retryLater(q)
	}
	p.dispatch()
}

// untimedFor is how long a queue's messages go without timestamps after the broker refused one.
const untimedFor = time.Minute

// omitTimestamps sends the messages of a queue without timestamps for a while, because the broker refuses
// those of our clock. It accepts messages without, and then goes by the age of its files. Topics that
// Batchyard creates have the broker's time, and refuse none. The caller holds mu.
func (p *producer) omitTimestamps(q *queue) {
	if q.untimedUntil.IsZero() {
		p.cl.logger.Error("Kafka refuses the time of our records: this machine's clock, or the broker's, is wrong. Writing them without a time",
			"topic", p.cl.full(q.topic.Name), "partition", q.partition, "time", clock.Now().UTC())
	}
	p.cl.metrics.Stream.TimesRefused.WithLabelValues(q.topic.Name).Inc()
	q.untimedUntil = time.Now().Add(untimedFor)
}

func failAll(p *producer, entries []entry) {
	for i := range entries {
		p.room.Release(p.weight(entries[i].size))
		entries[i].to.delivered(ErrClosed)
	}
}

// retryLater makes the queue ready after a backoff that grows with each failure. The caller
// holds mu.
func (p *producer) retryLater(q *queue) {
	pause := backoff.After(q.failures)
	q.failures++
	q.queued = true // so that a new message does not make it ready earlier
	time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		q.queued = false
		p.makeReady(q)
		p.dispatch()
	})
}

// markRecovered notes that a partition can be written again. The caller holds mu.
func (p *producer) markRecovered(q *queue) {
	q.alone = false
	if q.failures > 0 {
		q.failures = 0
		p.trouble.Report(q.what(), nil)
	}
}

func (q *queue) what() string {
	return "write " + q.topic.Name + "/" + strconv.Itoa(int(q.partition))
}

// roundTrip sends the request. It stores errors of single partitions in their parts.
func (p *producer) roundTrip(r *request) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.cl.cfg.RequestTimeout)
	defer cancel()
	batches := make([]produce.Batch, len(r.parts))
	for i := range r.parts {
		batches[i] = p.batch(&r.parts[i])
	}
	errs, err := produce.Do(ctx, p.cl.transport, p.cl.addr, p.cl.cfg.RequestTimeout/2, p.compression, batches)
	for i := range errs {
		r.parts[i].err = errs[i]
	}
	return err
}

// batch is what a part sends. It keeps the entries: after a timeout, or while the producer is closed, the transport may
// encode a request that was given up already.
func (p *producer) batch(pt *part) produce.Batch {
	entries := pt.entries
	return produce.Batch{Topic: p.cl.full(pt.q.topic.Name), Partition: pt.q.partition, Time: pt.timestamp(), Records: len(entries),
		Record: func(i int, to *produce.Record) {
			m := &entries[i].msg
			to.Set(m.Key, m.EmptyKey, m.Value)
			for _, h := range m.Headers {
				to.AddHeader(h.Key, h.Value)
			}
		}}
}

// timestamp returns the time of the records of a part. Readers take their age from it, in topics where the
// broker does not replace it by its own.
func (pt *part) timestamp() time.Time {
	if pt.untimed {
		return produce.NoTime
	}
	return clock.Now()
}

func isTooLarge(err error) bool {
	return errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge)
}

// isPermanent reports whether the message itself is to blame. Any other error, even a missing
// permission, an operator can fix while we keep retrying; and a time that is refused is left out.
func isPermanent(err error) bool { return errors.Is(err, kafka.InvalidRecord) }
