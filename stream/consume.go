package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
)

// ConsumerConfig says what to consume and how much of it at once. Zero numbers
// stand for their defaults.
type ConsumerConfig struct {
	Group        string        // the stage; GroupID makes the group's id of it
	Topic        string        // without the prefix
	MaxRecords   int           // fetched and not Done; 4096
	MaxBytes     int64         // of these; 64 MiB
	Offsets      OffsetStore   // nil: the group's offsets in Kafka
	DrainTimeout time.Duration // for records in flight to be Done after ctx ended; 20 s
	MaxSpread    int64         // between the lowest unfinished and the highest finished record before OnStraggler; 20000
	// OnStraggler hears of a record that holds up the commit of its partition,
	// once for each, so that the stage can set it aside. It must not block.
	OnStraggler func(*Record)
	// OnLost hears that a partition and the records in flight from it are lost:
	// somebody else reads them. It must not block.
	OnLost func(partition int)
}

// OffsetStore keeps the offsets outside of Kafka, in the same transaction as
// what follows from the records. Offsets are committed to Kafka all the same,
// for whoever measures the lag; they are not read.
type OffsetStore interface {
	// Acquire is called each time a partition is gained. It returns the offset to
	// read next, -1 for the start of the log.
	Acquire(ctx context.Context, topic string, partition int) (next int64, err error)
}

// GroupID is the id of a stage's consumer group for a topic, prefix included.
func (l *Log) GroupID(group, topic string) string {
	return l.cfg.TopicPrefix + "batchyard." + group + "." + topic
}

// consumer is one Consume: a member of a group.
type consumer struct {
	l      *Log
	cfg    ConsumerConfig
	group  string
	topic  Topic
	log    *slog.Logger
	m      *metrics.Stream
	handle func(context.Context, []*Record)
	budget *budget

	member      string     // only the goroutine of Consume uses it
	coordinator net.Addr   // only heartbeats use it; nil: to be looked up
	committing  sync.Mutex // one commit at a time, so that they arrive in order
	idle        chan struct{}
	active      atomic.Int64 // handlers that run
	wg          sync.WaitGroup

	mu      sync.Mutex
	parts   map[int]*partition
	trouble map[string]struct{} // what does not work at present, so that it is logged once
}

// Consume joins the group and calls handle with consecutive records of one
// partition, from one goroutine for each partition. handle may block: only its
// partition waits. Its context ends when the partition is lost or ctx ends.
// ready is called once, when the first partitions are assigned; it may be nil.
//
// When ctx ends, nothing more is fetched; records in flight have DrainTimeout
// to be Done; then offsets are committed, the group is left, and Consume returns
// nil. An error is returned only for what no patience can help.
func (l *Log) Consume(ctx context.Context, cfg ConsumerConfig, handle func(ctx context.Context, recs []*Record), ready func()) error {
	t, err := findTopic(cfg.Topic)
	if err != nil {
		return fmt.Errorf("consuming: %w", err)
	}
	cfg.MaxRecords = cmp.Or(cfg.MaxRecords, 4096)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 64<<20)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 20*time.Second)
	cfg.MaxSpread = cmp.Or(cfg.MaxSpread, 20000)
	group := l.GroupID(cfg.Group, cfg.Topic)
	c := &consumer{
		l: l, cfg: cfg, topic: t, group: group, handle: handle,
		log:     l.log.With("group", group),
		m:       &l.m.Stream,
		budget:  newBudget(cfg.MaxRecords, cfg.MaxBytes),
		idle:    make(chan struct{}, 1),
		parts:   map[int]*partition{},
		trouble: map[string]struct{}{},
	}
	return c.run(ctx, ready)
}

func (c *consumer) run(ctx context.Context, ready func()) error {
	// The membership outlives ctx by the drain.
	life, end := context.WithCancel(c.l.producer.ctx)
	defer end()
	c.wg.Go(func() {
		c.drain(ctx, life)
		end()
	})
	s, err := c.live(ctx, life, ready)
	end()
	// Bounded: the broker may be away, and then others wait for the session timeout.
	last, cancel := context.WithTimeout(c.l.producer.ctx, min(5*time.Second, c.l.cfg.RequestTimeout))
	defer cancel()
	if s != nil {
		if err := c.commit(last, s); err != nil {
			c.log.Warn("committing for the last time; what was done since the commit before is done again", "error", err)
		}
	}
	c.loseAll("")
	c.leave(last)
	c.wait(last)
	if err == nil && ctx.Err() == nil {
		err = ErrClosed
	}
	return err
}

// wait waits for the handlers to return. One that does not heed its context is
// left behind: the process is about to end.
func (c *consumer) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		c.log.Warn("a handler did not return although its context ended")
	}
}

// live is a member of one generation after the other until life ends; it
// returns the session that is still valid, if any.
func (c *consumer) live(ctx, life context.Context, ready func()) (*session, error) {
	var last *session
	for failures := 0; life.Err() == nil; {
		s, err := c.join(life)
		if errors.Is(err, errSession) {
			return nil, err
		}
		if err != nil {
			if life.Err() == nil {
				c.report("join", err)
				pause(life, failures)
				failures++
			}
			continue
		}
		failures = 0
		c.report("join", nil)
		c.m.Rebalances.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.own(ctx, last, s)
		last = s
		if ready != nil {
			ready()
			ready = nil
		}
		switch c.serve(life, s) {
		case ended:
			return s, nil
		case evicted:
			c.loseAll("the group went on without this member")
			last = nil
		case unknown:
			c.loseAll("the group went on without this member")
			c.member = ""
			last = nil
		default:
			// Still a member of the old generation: what is finished is committed
			// before the next owner asks.
			if err := c.commit(life, s); err != nil {
				c.log.Debug("committing before a rebalance", "error", err)
			}
		}
	}
	return nil, nil
}

// pause waits a moment, longer after more failures.
func pause(ctx context.Context, failures int) {
	d := min(maxBackoff, 5*minBackoff<<min(failures, 10))
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// serve keeps the session alive and commits until it ends.
func (c *consumer) serve(life context.Context, s *session) outcome {
	ctx, stop := context.WithCancel(life)
	over := make(chan outcome, 2)
	var wg sync.WaitGroup
	wg.Go(func() { over <- c.heartbeat(ctx, s) })
	wg.Go(func() { over <- c.commitAll(ctx, s) })
	o := <-over
	stop()
	wg.Wait()
	if second := <-over; second > o { // the one who knows more
		o = second
	}
	return o
}

// own takes over what the session assigned: partitions that stay go on, those
// that are somebody else's now are lost, new ones are started.
func (c *consumer) own(ctx context.Context, last, s *session) {
	// If a generation went by without us, somebody may have had our partitions in it.
	stays := last != nil && last.member == s.member && last.generation+1 == s.generation
	if !stays {
		c.loseAll("the group went on without this member")
	}
	c.mu.Lock()
	var lost, gained []*partition
	for id, p := range c.parts {
		if !slices.Contains(s.assigned, id) {
			lost = append(lost, p)
			delete(c.parts, id)
		}
	}
	for _, id := range s.assigned {
		if c.parts[id] == nil && ctx.Err() == nil { // while draining nothing new is begun
			p := &partition{c: c, id: id, committed: -1}
			p.ctx, p.cancel = context.WithCancel(ctx)
			c.parts[id] = p
			gained = append(gained, p)
		}
	}
	kept := len(c.parts) - len(gained)
	c.mu.Unlock()
	for _, p := range lost {
		p.lose()
	}
	for _, p := range gained {
		c.budget.join(&p.budget)
	}
	for _, p := range gained {
		c.wg.Go(p.run)
	}
	c.log.Info("joined the group", "generation", s.generation, "partitions", s.assigned, "kept", kept, "gained", len(gained), "lost", len(lost))
}

// loseAll gives up every partition.
func (c *consumer) loseAll(why string) {
	c.mu.Lock()
	parts := c.parts
	c.parts = map[int]*partition{}
	c.mu.Unlock()
	if len(parts) > 0 && why != "" {
		c.log.Warn("lost all partitions: "+why, "partitions", len(parts))
	}
	for _, p := range parts {
		p.lose()
	}
}

// owned are the partitions that this member has.
func (c *consumer) owned() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]int, 0, len(c.parts))
	for id := range c.parts {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (c *consumer) partitions() []*partition {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := make([]*partition, 0, len(c.parts))
	for _, p := range c.parts {
		parts = append(parts, p)
	}
	return parts
}

// drained is called when a partition has nothing in flight.
func (c *consumer) drained() { signal(c.idle) }

// drain waits until ctx has ended and then until nothing is in flight, at most
// for the drain timeout.
func (c *consumer) drain(ctx, life context.Context) {
	select {
	case <-ctx.Done():
	case <-life.Done():
		return
	}
	timer := time.NewTimer(c.cfg.DrainTimeout)
	defer timer.Stop()
	for {
		n := int(c.active.Load())
		for _, p := range c.partitions() {
			p.mu.Lock()
			n += p.inFlight
			p.mu.Unlock()
		}
		if n == 0 {
			return
		}
		select {
		case <-c.idle:
		case <-life.Done():
			return
		case <-timer.C:
			c.log.Warn("stopping with records that are not finished; they are read again", "records", n)
			return
		}
	}
}

// report notes that something does not work or works again, and logs the first
// trouble and the end of all.
func (c *consumer) report(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.trouble)
	if err != nil {
		c.trouble[what] = struct{}{}
	} else {
		delete(c.trouble, what)
	}
	gauge := c.m.BrokerUnreachable.WithLabelValues("consume")
	switch after := len(c.trouble); {
	case before == 0 && after > 0:
		gauge.Set(1)
		c.log.Warn("Kafka does not answer as it should; trying again until it does", "what", what, "error", err)
	case before > 0 && after == 0:
		gauge.Set(0)
		c.log.Info("Kafka answers again")
	case err != nil:
		c.log.Debug("Kafka does not answer as it should", "what", what, "error", err)
	}
}
