package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/batchyard/batchyard/stream/internal/buckets"
	"github.com/batchyard/batchyard/task"
)

// Unit is the output of one or more records. They are done once it is acknowledged.
type Unit struct {
	Messages []Message
	Events   []task.Event
	// Acked is called once, from a goroutine of the outbox and under no lock: with nil when all
	// in-sync replicas have the whole unit; with an error when they never will, because a
	// message is too large or the Log was closed. It may be nil. While it blocks, no other
	// Acked of this outbox is called.
	Acked func(error)
}

// Outbox writes units, so that a stage can produce first and commit afterwards. Events of many
// units are gathered into frames, one for each partition of the events topic, so that the events
// of one task stay in order. While Kafka is unreachable, an outbox retries indefinitely, and Put
// blocks once it is full. If the process dies, the unacknowledged units are lost; their records
// were not done and are read again.
type Outbox struct {
	cl          *Client
	name        string
	units       *semaphore.Weighted
	bytes       *semaphore.Weighted
	maxBytes    int64
	wake        chan struct{} // there are events to write
	completions chan struct{} // there are completed units
	stop        chan struct{}
	wg          sync.WaitGroup
	unacked     atomic.Int64 // units whose Acked has not returned

	mu        sync.Mutex
	closed    bool
	idle      chan struct{}  // closed when unacked falls to 0; nil when no Flush waits
	pending   []unitEvents   // not in a frame yet
	completed []*pendingUnit // their Acked is to be called
}

// pendingUnit counts the messages and frames of a unit that are not acknowledged. It starts with
// one more, so that the unit cannot complete while Put still hands it over.
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
		u.o.completed = append(u.o.completed, u)
		u.o.mu.Unlock()
		signal(u.o.completions)
	}
}

// signal wakes the goroutine that receives from c, now or when it next looks.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// NewOutbox returns an outbox that holds at most so many unacknowledged units and bytes. The name
// is its label in metrics. Close it, or its goroutines run until the process ends.
func (cl *Client) NewOutbox(name string, maxUnits int, maxBytes int64) *Outbox {
	o := &Outbox{
		cl: cl, name: name, maxBytes: maxBytes,
		units:       semaphore.NewWeighted(int64(maxUnits)),
		bytes:       semaphore.NewWeighted(maxBytes),
		wake:        make(chan struct{}, 1),
		completions: make(chan struct{}, 1),
		stop:        make(chan struct{}),
	}
	o.wg.Go(o.writeEvents)
	o.wg.Go(o.ack)
	return o
}

// Put hands over a unit. It blocks while the outbox is full. It fails only when ctx ends or the
// outbox is closed; then Acked is not called.
func (o *Outbox) Put(ctx context.Context, u Unit) error {
	p := &pendingUnit{o: o, acked: u.Acked}
	for i := range u.Messages {
		p.size += int64(u.Messages[i].Size())
	}
	for i := range u.Events {
		p.size += int64(buckets.Size(&u.Events[i]))
	}
	p.size = min(p.size, o.maxBytes)
	if err := o.units.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("putting a unit into outbox %s: %w", o.name, err)
	}
	if err := o.bytes.Acquire(ctx, p.size); err != nil {
		o.units.Release(1)
		return fmt.Errorf("putting a unit into outbox %s: %w", o.name, err)
	}
	// Choose all partitions before anything is handed over: up to here Put can still fail
	// without having written a part of the unit.
	batch := make([]routed, 0, len(u.Messages))
	p.left.Store(int64(len(u.Messages)) + 1)
	for i := range u.Messages {
		m, err := o.cl.producer.route(ctx, u.Messages[i], anyPartition)
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
	o.unacked.Add(1)
	if len(u.Events) > 0 {
		p.left.Add(1) // until the events are in frames
		o.pending = append(o.pending, unitEvents{p, u.Events})
	}
	o.mu.Unlock()
	o.cl.metrics.Stream.OutboxWaiting.WithLabelValues(o.name).Inc()
	if len(u.Events) > 0 {
		signal(o.wake)
	}
	o.enqueueAll(batch)
	p.delivered(nil) // all of the unit is handed over
	return nil
}

// enqueueAll gives messages to the producer. The unit is partly handed over, so it waits for
// room for as long as it takes, or until the Log is closed.
func (o *Outbox) enqueueAll(batch []routed) {
	for len(batch) > 0 {
		n, err := o.cl.producer.enqueue(o.cl.producer.ctx, batch)
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

// ack calls Acked in the order in which the units completed.
func (o *Outbox) ack() {
	for {
		o.mu.Lock()
		completed := o.completed
		o.completed = nil
		o.mu.Unlock()
		for _, u := range completed {
			var err error
			if e := u.err.Load(); e != nil {
				err = *e
			}
			if u.acked != nil {
				u.acked(err)
			}
			o.release(u)
			o.cl.metrics.Stream.OutboxWaiting.WithLabelValues(o.name).Dec()
			if o.unacked.Add(-1) == 0 {
				o.mu.Lock()
				if o.idle != nil && o.unacked.Load() == 0 {
					close(o.idle)
					o.idle = nil
				}
				o.mu.Unlock()
			}
		}
		if len(completed) > 0 {
			continue
		}
		select {
		case <-o.completions:
		case <-o.stop:
			return
		}
	}
}

// Flush waits until every unit is acknowledged and its Acked has returned. It fails when ctx
// ends, or when Close gives up. It also waits for units that are put meanwhile.
func (o *Outbox) Flush(ctx context.Context) error {
	o.mu.Lock()
	if o.unacked.Load() == 0 {
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
			return fmt.Errorf("flushing outbox %s: %w", o.name, ErrClosed)
		}
	case <-ctx.Done():
		return fmt.Errorf("flushing outbox %s: %d units are not acknowledged: %w", o.name, o.unacked.Load(), ctx.Err())
	}
}

// Close refuses new units and flushes the outbox. When ctx ends first, the Acked of the remaining
// units is never called; their records are read again after the next start.
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
		return err
	}
	o.wg.Wait()
	return nil
}
