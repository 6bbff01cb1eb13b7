package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceAPI "github.com/segmentio/kafka-go/protocol/produce"

	"github.com/batchyard/batchyard/internal/fault"
)

// request is one produce request: batches for partitions with one leader.
type request struct {
	leader int32
	parts  []part
	bytes  int
	alone  bool
}

type part struct {
	q       *queue
	entries []entry
	err     error
}

// send writes a request and settles its messages: delivered, failed for good,
// or back to the front of their queues. A process that dies here has
// acknowledged none of them to anybody.
func (p *producer) send(r *request) {
	err := p.roundTrip(r)
	fault.At("stream.after_ack")
	retry := false
	for i := range r.parts {
		pt := &r.parts[i]
		if err != nil {
			pt.err = err
		}
		// Before the queue may send again, so that news of one partition keep its order.
		pt.settle(p)
		retry = retry || len(pt.entries) > 0
	}
	if retry {
		p.l.layout.kick()
	}
	p.finish(r)
}

// settle tells whoever waits and keeps in pt.entries what is to be sent again.
func (pt *part) settle(p *producer) {
	m := &p.l.m.Stream
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

// finish puts back what is to be sent again and lets the next requests go.
func (p *producer) finish(r *request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight[r.leader]--
	for i := range r.parts {
		pt := &r.parts[i]
		q := pt.q
		q.sending = false
		if len(pt.entries) == 0 {
			p.recovered(q)
			// One message too large was found, or a part went through: the rest in
			// larger batches again.
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
		if isTooLarge(pt.err) || isPermanent(pt.err) {
			// One of them is at fault: halve until it is alone.
			q.limit = max(1, len(pt.entries)/2)
			p.makeReady(q)
			continue
		}
		q.alone = len(r.parts) > 1
		p.failed(q, pt.err)
		p.later(q)
	}
	p.dispatch()
}

func failAll(p *producer, entries []entry) {
	for i := range entries {
		p.room.Release(p.weight(entries[i].size))
		entries[i].to.delivered(ErrClosed)
	}
}

// later makes the queue ready after a pause that grows with each failure. The
// caller holds mu.
func (p *producer) later(q *queue) {
	pause := min(maxBackoff, minBackoff<<min(q.failures, 10))
	pause = pause/2 + rand.N(pause/2+1)
	q.failures++
	q.queued = true // keeps new messages from making it ready before
	time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		q.queued = false
		p.makeReady(q)
		p.dispatch()
	})
}

// failed and recovered count the partitions that cannot be written, and log
// when writing stops and when all of it goes on. The caller holds mu.
func (p *producer) failed(q *queue, err error) {
	p.lastErr = err
	if q.failures > 0 {
		return
	}
	if p.failing++; p.failing == 1 {
		p.l.m.Stream.BrokerUnreachable.WithLabelValues("produce").Set(1)
		p.l.log.Warn("Kafka does not take what is written; trying again until it does", "topic", p.l.full(q.topic.Name), "error", err)
	}
}

func (p *producer) recovered(q *queue) {
	q.alone = false
	if q.failures == 0 {
		return
	}
	q.failures = 0
	if p.failing--; p.failing == 0 {
		p.lastErr = nil
		p.l.m.Stream.BrokerUnreachable.WithLabelValues("produce").Set(0)
		p.l.log.Info("Kafka takes what is written again")
	}
}

// roundTrip sends the request; the error of a single partition goes into its part.
func (p *producer) roundTrip(r *request) error {
	ctx, cancel := context.WithTimeout(p.ctx, p.l.cfg.RequestTimeout)
	defer cancel()
	req := &produceAPI.Request{Acks: -1, Timeout: int32(p.l.cfg.RequestTimeout.Milliseconds() / 2)}
	at := map[string]int{}
	for i := range r.parts {
		pt := &r.parts[i]
		name := p.l.full(pt.q.topic.Name)
		j, ok := at[name]
		if !ok {
			j = len(req.Topics)
			at[name] = j
			req.Topics = append(req.Topics, produceAPI.RequestTopic{Topic: name})
		}
		req.Topics[j].Partitions = append(req.Topics[j].Partitions, produceAPI.RequestPartition{
			Partition: pt.q.partition,
			RecordSet: protocol.RecordSet{
				Attributes: protocol.Attributes(p.compression) & 7,
				Records:    &entryReader{entries: pt.entries},
			},
		})
	}
	res, err := p.l.transport.RoundTrip(ctx, p.l.addr, req)
	if err != nil {
		return err
	}
	answers := map[queueKey]error{}
	for _, t := range res.(*produceAPI.Response).Topics {
		for _, pr := range t.Partitions {
			var err error
			if pr.ErrorCode != 0 {
				err = kafka.Error(pr.ErrorCode)
			}
			answers[queueKey{t.Topic, pr.Partition}] = err
		}
	}
	for i := range r.parts {
		pt := &r.parts[i]
		err, ok := answers[queueKey{p.l.full(pt.q.topic.Name), pt.q.partition}]
		if !ok {
			err = errors.New("the broker did not answer for the partition")
		}
		pt.err = err
	}
	return nil
}

func isTooLarge(err error) bool {
	return errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge)
}

// isPermanent reports whether the message itself is at fault. All else, even a
// missing permission, somebody can put right while we keep trying.
func isPermanent(err error) bool {
	return errors.Is(err, kafka.InvalidRecord) || errors.Is(err, kafka.InvalidTimestamp)
}

// entryReader hands messages to the client's encoder. The record and its parts
// are used again for the next: the encoder is done with one when it asks for
// another.
type entryReader struct {
	entries    []entry
	at         int
	record     protocol.Record
	key, value memory
	headers    []protocol.Header
}

type memory struct{ bytes.Reader }

func (*memory) Close() error { return nil }

// ReadRecord implements protocol.RecordReader.
func (r *entryReader) ReadRecord() (*protocol.Record, error) {
	if r.at == len(r.entries) {
		return nil, io.EOF
	}
	m := &r.entries[r.at].msg
	r.at++
	r.record = protocol.Record{}
	if m.Key != "" {
		r.key.Reset([]byte(m.Key))
		r.record.Key = &r.key
	}
	if m.Value != nil {
		r.value.Reset(m.Value)
		r.record.Value = &r.value
	}
	r.headers = r.headers[:0]
	for _, h := range m.Headers {
		r.headers = append(r.headers, protocol.Header{Key: h.Key, Value: h.Value})
	}
	r.record.Headers = r.headers
	return &r.record, nil
}
