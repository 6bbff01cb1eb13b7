package stream

import (
	"fmt"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/internal/fault"
	"github.com/batchyard/batchyard/stream/internal/buckets"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// maxFrameBytes is the size, roughly, at which a frame of events is written.
const maxFrameBytes = 512 << 10

// unitEvents is a unit's events that wait to be put into frames.
type unitEvents struct {
	unit   *pendingUnit
	events []task.Event
}

// frameUnits is the units whose events are in one frame.
type frameUnits []*pendingUnit

func (f frameUnits) delivered(err error) {
	for _, u := range f {
		u.delivered(err)
	}
}

// writeEvents writes the pending events as frames, no more often than kafka.event_linger allows.
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
		if pause := o.cl.cfg.EventLinger - time.Since(began); pause > 0 {
			timer.Reset(pause)
			select {
			case <-timer.C:
			case <-o.stop:
				return
			}
		}
	}
}

// frame is events for one bucket, which is a partition of the events topic.
type frame struct {
	events []task.Event
	units  frameUnits
	bytes  int
}

// flush writes the events of the units as frames.
func (o *Outbox) flush(pending []unitEvents) {
	m := &o.cl.metrics.Stream
	m.OutboxFlushes.WithLabelValues(o.name).Inc()
	m.OutboxFlushUnits.WithLabelValues(o.name).Observe(float64(len(pending)))
	n, err := o.cl.layout.Partitions(o.cl.producer.ctx, Events)
	if err != nil {
		for _, e := range pending {
			e.unit.delivered(ErrClosed)
		}
		return
	}
	frames := make([]frame, n)
	for _, e := range pending {
		for i := range e.events {
			b := buckets.Of(&e.events[i], n)
			f := &frames[b]
			f.events = append(f.events, e.events[i])
			f.bytes += buckets.Size(&e.events[i])
			if u := len(f.units); u == 0 || f.units[u-1] != e.unit {
				f.units = append(f.units, e.unit)
				e.unit.left.Add(1)
			}
			if f.bytes >= maxFrameBytes || len(f.events) >= wire.MaxFrameEvents {
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
		e.unit.delivered(nil) // all its events are in frames now
	}
}

func (o *Outbox) writeFrame(bucket int, f *frame) {
	fault.At("stream.before_events")
	value, err := wire.EncodeFrame(wire.FrameEvents, f.events)
	if err != nil {
		f.units.delivered(fmt.Errorf("writing events: %w", err))
		return
	}
	p, err := o.cl.producer.route(o.cl.producer.ctx, Message{Topic: Events, Key: strconv.Itoa(bucket), Value: value}, int32(bucket))
	if err != nil {
		f.units.delivered(err)
		return
	}
	p.entry.to = f.units
	o.enqueueAll([]routed{p})
}
