package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/task"
)

// maxFrameBytes is about how large a frame of events gets.
const maxFrameBytes = 512 << 10

// Unit is what follows from one or more records: once it is acknowledged, they
// are done.
type Unit struct {
	Messages []Message
	Events   []task.Event
	// Acked is called once, from a goroutine of the outbox and under no lock:
	// with nil when all in-sync replicas have all of the unit; with an error when
	// they never will, because a message is too large or the Log was closed. It
	// may be nil. While it blocks, no other Acked of this outbox is called.
	Acked func(error)
}

// Outbox writes units: produce, then commit. Events of many units are gathered
// into frames, one for each partition of the topic events, so that events of
// one task stay in order. While Kafka is away an outbox keeps trying for ever
// and Put blocks once it is full.
type Outbox struct {
	l        *Log
	name     string
	units    *semaphore.Weighted
	bytes    *semaphore.Weighted
	maxBytes int64
	wake     chan struct{} // events are there to be written
	acks     chan struct{} // units are settled
	stop     chan struct{}
	wg       sync.WaitGroup
	waiting  atomic.Int64 // units not acked yet

	mu      sync.Mutex
	closed  bool
	idle    chan struct{}  // closed when waiting falls to 0; nil when nobody waits for it
	pending []eventsOfUnit // not yet in a frame
	settled []*pendingUnit // to be acked
}

type eventsOfUnit struct {
	unit   *pendingUnit
	events []task.Event
}

// pendingUnit counts what is left of a unit.
type pendingUnit struct {
	o     *Outbox
	acked func(error)
	size  int64
	left  atomic.Int64
	err   atomic.Pointer[error]
}

func (u *pendingUnit) delivered(err error) {
	if err != nil {
		u.err.CompareAndSwap(nil, &err)
	}
	if u.left.Add(-1) == 0 {
		u.o.mu.Lock()
		u.o.settled = append(u.o.settled, u)
		u.o.mu.Unlock()
		signal(u.o.acks)
	}
}

// frameOf tells the units whose events a frame holds.
type frameOf []*pendingUnit

func (f frameOf) delivered(err error) {
	for _, u := range f {
		u.delivered(err)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// NewOutbox makes an outbox that holds at most so many units and bytes that
// are not acknowledged. The name is for metrics.
func (l *Log) NewOutbox(name string, maxUnits int, maxBytes int64) *Outbox {
	o := &Outbox{
		l: l, name: name, maxBytes: maxBytes,
		units: semaphore.NewWeighted(int64(maxUnits)),
		bytes: semaphore.NewWeighted(maxBytes),
		wake:  make(chan struct{}, 1),
		acks:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
	}
	o.wg.Go(o.writeEvents)
	o.wg.Go(o.ack)
	return o
}

// Put hands over a unit. It blocks while the outbox is full; it fails only when
// ctx ends or the outbox is closed, and Acked is not called then.
func (o *Outbox) Put(ctx context.Context, u Unit) error {
	p := &pendingUnit{o: o, acked: u.Acked}
	for i := range u.Messages {
		p.size += int64(u.Messages[i].size())
	}
	for i := range u.Events {
		p.size += int64(sizeOfEvent(&u.Events[i]))
	}
	p.size = min(p.size, o.maxBytes)
	if err := o.units.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("putting a unit into outbox %s: %w", o.name, err)
	}
	if err := o.bytes.Acquire(ctx, p.size); err != nil {
		o.units.Release(1)
		return fmt.Errorf("putting a unit into outbox %s: %w", o.name, err)
	}
	// Partitions are chosen before anything is handed over: this is the last
	// point at which the unit can be given back whole.
	batch := make([]placed, 0, len(u.Messages))
	p.left.Store(int64(len(u.Messages)) + 1)
	for i := range u.Messages {
		m, err := o.l.producer.place(ctx, u.Messages[i], -1)
		if err != nil {
			if _, tooLarge := errors.AsType[*TooLargeError](err); !tooLarge {
				o.release(p)
				return err
			}
			p.left.Add(-1)
			p.err.CompareAndSwap(nil, &err)
			continue
		}
		m.entry.to = p
		batch = append(batch, m)
	}
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		o.release(p)
		return fmt.Errorf("putting a unit into outbox %s: %w", o.name, ErrClosed)
	}
	o.waiting.Add(1)
	if len(u.Events) > 0 {
		p.left.Add(1) // until the events are spread over frames
		o.pending = append(o.pending, eventsOfUnit{p, u.Events})
	}
	o.mu.Unlock()
	o.l.m.Stream.OutboxWaiting.WithLabelValues(o.name).Inc()
	if len(u.Events) > 0 {
		signal(o.wake)
	}
	o.hand(batch)
	p.delivered(nil) // all of the unit is handed over
	return nil
}

// hand gives messages to the producer. There is no going back any more, so it
// waits for room however long that takes: at most until the Log is closed.
func (o *Outbox) hand(batch []placed) {
	for len(batch) > 0 {
		n, err := o.l.producer.enqueue(o.l.producer.ctx, batch)
		if err != nil {
			for i := range batch {
				batch[i].entry.to.delivered(ErrClosed)
			}
			return
		}
		batch = batch[n:]
	}
}

func (o *Outbox) release(p *pendingUnit) {
	o.units.Release(1)
	o.bytes.Release(p.size)
}

// ack calls Acked in the order in which units settled.
func (o *Outbox) ack() {
	for {
		o.mu.Lock()
		settled := o.settled
		o.settled = nil
		o.mu.Unlock()
		for _, u := range settled {
			var err error
			if e := u.err.Load(); e != nil {
				err = *e
			}
			if u.acked != nil {
				u.acked(err)
			}
			o.release(u)
			o.l.m.Stream.OutboxWaiting.WithLabelValues(o.name).Dec()
			if o.waiting.Add(-1) == 0 {
				o.mu.Lock()
				if o.idle != nil && o.waiting.Load() == 0 {
					close(o.idle)
					o.idle = nil
				}
				o.mu.Unlock()
			}
		}
		if len(settled) > 0 {
			continue
		}
		select {
		case <-o.acks:
		case <-o.stop:
			return
		}
	}
}

// writeEvents turns the events that have come into frames, again and again, not
// more often than the linger allows.
func (o *Outbox) writeEvents() {
	timer := time.NewTimer(0)
	<-timer.C
	for {
		select {
		case <-o.wake:
		case <-o.stop:
			return
		}
		began := time.Now()
		o.mu.Lock()
		pending := o.pending
		o.pending = nil
		o.mu.Unlock()
		if len(pending) == 0 {
			continue
		}
		o.flush(pending)
		if pause := o.l.cfg.EventLinger - time.Since(began); pause > 0 {
			timer.Reset(pause)
			select {
			case <-timer.C:
			case <-o.stop:
				return
			}
		}
	}
}

// frame is events for one bucket, being gathered.
type frame struct {
	events []task.Event
	units  frameOf
	bytes  int
}

// flush writes the events of the units as frames.
func (o *Outbox) flush(pending []eventsOfUnit) {
	m := &o.l.m.Stream
	m.OutboxFlushes.WithLabelValues(o.name).Inc()
	m.OutboxFlushUnits.WithLabelValues(o.name).Observe(float64(len(pending)))
	buckets, err := o.l.layout.partitions(o.l.producer.ctx, Events)
	if err != nil {
		for _, e := range pending {
			e.unit.delivered(ErrClosed)
		}
		return
	}
	frames := make([]frame, buckets)
	for _, e := range pending {
		for i := range e.events {
			b := bucketOfEvent(&e.events[i], buckets)
			f := &frames[b]
			f.events = append(f.events, e.events[i])
			f.bytes += sizeOfEvent(&e.events[i])
			if n := len(f.units); n == 0 || f.units[n-1] != e.unit {
				f.units = append(f.units, e.unit)
				e.unit.left.Add(1)
			}
			if f.bytes >= maxFrameBytes || len(f.events) >= task.MaxFrameEvents {
				o.writeFrame(b, f)
				*f = frame{}
			}
		}
	}
	for b := range frames {
		if len(frames[b].events) > 0 {
			o.writeFrame(b, &frames[b])
		}
	}
	for _, e := range pending {
		e.unit.delivered(nil) // its events are in frames now
	}
}

func (o *Outbox) writeFrame(bucket int, f *frame) {
	fault.At("stream.before_events")
	value, err := task.EncodeFrame(task.FrameEvents, f.events)
	if err != nil {
		f.units.delivered(fmt.Errorf("writing events: %w", err))
		return
	}
	p, err := o.l.producer.place(o.l.producer.ctx, Message{Topic: Events, Key: strconv.Itoa(bucket), Value: value}, int32(bucket))
	if err != nil {
		f.units.delivered(err)
		return
	}
	p.entry.to = f.units
	o.hand([]placed{p})
}

// bucketOfEvent keeps the events of one task, and of one thing that is no task,
// together. Those of a task are where its result is, if both topics have as many
// partitions: who records both then has them at hand at the same time.
func bucketOfEvent(e *task.Event, n int) int {
	if e.TaskID != "" {
		return int(partitionOf(e.TaskID, n))
	}
	return bucketOf([]byte(e.Tenant+"\x00"+e.ResourceType+"\x00"+e.ResourceID), n)
}

// sizeOfEvent estimates the bytes of an event in a frame.
func sizeOfEvent(e *task.Event) int {
	return 200 + len(e.Tenant) + len(e.ActorID) + len(e.SourceAddr) + len(e.UserAgent) + len(e.ResourceType) + len(e.ResourceID) +
		len(e.TaskID) + len(e.Job) + len(e.Batch) + len(e.Device) + len(e.TraceID) + len(e.Model) +
		len(e.InputSHA256) + len(e.OutputSHA256) + len(e.Detail) + len(e.Endpoint) + len(e.CustomID)
}

// Flush waits until no unit is left that is not acknowledged, with its Acked
// returned, or until ctx ends, or Close gives up. Units may come meanwhile; they are waited for, too.
func (o *Outbox) Flush(ctx context.Context) error {
	o.mu.Lock()
	if o.waiting.Load() == 0 {
		o.mu.Unlock()
		return nil
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-o.stop:
		select {
		case <-idle:
			return nil
		default:
			return fmt.Errorf("waiting for outbox %s, which gave up: %w", o.name, ErrClosed)
		}
	case <-ctx.Done():
		return fmt.Errorf("waiting for %d units of outbox %s that are not acknowledged: %w", o.waiting.Load(), o.name, ctx.Err())
	}
}

// Close refuses new units and waits until those it has are acknowledged and
// their Acked has returned, or until ctx ends: then the rest stays without an
// answer and their records are read again after the next start.
func (o *Outbox) Close(ctx context.Context) error {
	o.mu.Lock()
	already := o.closed
	o.closed = true
	o.mu.Unlock()
	if already {
		return nil
	}
	err := o.Flush(ctx)
	close(o.stop)
	if err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	o.wg.Wait()
	return nil
}
