package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream/internal/backoff"
	"github.com/batchyard/batchyard/stream/internal/budget"
	"github.com/batchyard/batchyard/stream/internal/membership"
	"github.com/batchyard/batchyard/stream/internal/refusals"
	"github.com/batchyard/batchyard/stream/internal/trouble"
)

// ConsumerConfig says what to consume and how much of it at a time. Zero numbers mean the
// defaults given here.
type ConsumerConfig struct {
	Group        string        // the stage's name; GroupID derives the group's id from it
	Topic        string        // without the prefix
	MaxRecords   int           // fetched and not Done; default 4096
	MaxBytes     int64         // of those records; default 64 MiB
	Offsets      OffsetStore   // nil: the group's offsets in Kafka
	DrainTimeout time.Duration // after ctx ended, for records in flight to be Done; default 20 s
	MaxSpread    int64         // finished offsets that no commit can name before OnStraggler; default 20000
	Reserved     float64       // share of the maxima that is divided among the partitions; default 0.5
	// OnStraggler is called with a record that holds up its partition's commit, so that the stage can
	// write it again elsewhere; and once more each second while it still does. It must not block.
	OnStraggler func(o *Ownership, offset int64)
	// OnLost is called when a partition, with its records in flight, now belongs to another
	// member, or its topic was recreated. It must not block.
	OnLost func(partition int)
	// OnGap is called like the handler, in the order of the log, for records that were deleted before they
	// were read, or while they were set aside. gap stands for all of them: it has the first offset, and
	// Incomplete the last; some of those between may be done. If ctx ends, it is reported again by the next owner.
	OnGap func(ctx context.Context, gap *Record)
	// OnAgain is called when a record will be handed out again: what has been made of it is Lost, and need
	// not be worked on. It must not block.
	OnAgain func()
	// OnCurrent is called every CurrentEvery with the partitions of which this member has handed out
	// everything that was in the log at some time since the last call. It must not block.
	OnCurrent    func(partitions []int)
	CurrentEvery time.Duration
}

// OffsetStore keeps the offsets outside Kafka, in the same transaction as the outputs that the
// records led to. Offsets are still committed to Kafka so that the lag can be measured there,
// but they are not read from there.
type OffsetStore interface {
	// Acquire is called each time a partition is gained. It returns the offset to
	// read next, or -1 for the start of the log.
	Acquire(ctx context.Context, topic string, partition int) (next int64, err error)
}

// GroupID returns the id of a stage's consumer group for a topic, prefix included.
func (cl *Client) GroupID(group, topic string) string {
	return cl.cfg.TopicPrefix + "batchyard." + group + "." + topic
}

// consumer is one call of Consume: a member of a group.
type consumer struct {
	cl      *Client
	cfg     ConsumerConfig
	group   string
	logger  *slog.Logger
	metrics *metrics.Stream
	handle  func(context.Context, []*Record)
	budget  *budget.Budget

	refusals   *refusals.Count
	member     *membership.Member
	committing sync.Mutex // one commit at a time, so that they arrive in order
	idle       chan struct{}
	active     atomic.Int64 // running handlers
	wg         sync.WaitGroup
	trouble    *trouble.Trouble

	mu    sync.Mutex
	parts map[int]*partition
}

// Consume joins the group and calls handle with consecutive records of one partition, or with some that are
// handed out again ([Record.Again]), from one goroutine per partition, and with records that are read again
// ([Ownership.Recall]), from another one. handle may block: only its partition waits. Its context ends when the
// partition is lost or ctx ends. ready is called once, when the first partitions are assigned; it may be nil.
//
// When ctx ends, fetching stops and records in flight have DrainTimeout to be Done; then the
// offsets are committed, the member leaves the group, and Consume returns nil. An error is
// returned only when retrying cannot help.
func (cl *Client) Consume(ctx context.Context, cfg ConsumerConfig, handle func(ctx context.Context, recs []*Record), ready func()) error {
	if _, err := findTopic(cfg.Topic); err != nil {
		return fmt.Errorf("consuming: %w", err)
	}
	cfg.MaxRecords = cmp.Or(cfg.MaxRecords, 4096)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 64<<20)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 20*time.Second)
	cfg.MaxSpread = cmp.Or(cfg.MaxSpread, 20000)
	cfg.Reserved = cmp.Or(cfg.Reserved, 0.5)
	id := cl.GroupID(cfg.Group, cfg.Topic)
	c := &consumer{
		cl: cl, cfg: cfg, group: id, handle: handle,
		logger:  cl.logger.With("group", id),
		metrics: &cl.metrics.Stream, refusals: cl.refusals,
		budget:  budget.New(cfg.MaxRecords, cfg.MaxBytes, cfg.Reserved),
		idle:    make(chan struct{}, 1),
		parts:   map[int]*partition{},
		trouble: trouble.New(cl.logger.With("group", id), cl.metrics.Stream.BrokerUnreachable.WithLabelValues("consume")),
	}
	c.member = c.newMember()
	cl.consumers.Store(c, nil)
	defer cl.consumers.Delete(c)
	return c.run(ctx, ready)
}

func (c *consumer) run(ctx context.Context, ready func()) error {
	// The membership outlives ctx until the drain ends.
	life, end := context.WithCancel(c.cl.producer.ctx)
	defer end()
	c.wg.Go(func() {
		c.drain(ctx, life)
		end()
	})
	s, err := c.stayMember(ctx, life, ready)
	end()
	// Bounded: if the broker is unreachable, other members wait for the session timeout.
	last, cancel := context.WithTimeout(c.cl.producer.ctx, min(5*time.Second, c.cl.cfg.RequestTimeout))
	defer cancel()
	if s != nil {
		if err := c.commit(last, s); err != nil {
			c.logger.Warn("the last commit failed; records finished since the previous one will be processed again", "error", err)
		}
	}
	c.loseAll("")
	if err := c.member.Leave(last); err != nil { // the others wait for the session timeout
		c.logger.Warn("leaving the group", "error", err)
	}
	c.waitForHandlers(last)
	if err == nil && ctx.Err() == nil {
		err = ErrClosed
	}
	return err
}

// waitForHandlers waits for the handlers to return, but not for one that ignores its context:
// the process is about to end.
func (c *consumer) waitForHandlers(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		c.logger.Warn("a handler did not return after its context ended")
	}
}

// stayMember joins generation after generation until life ends. It returns the session that is
// still valid, if any.
func (c *consumer) stayMember(ctx, life context.Context, ready func()) (*membership.Session, error) {
	var last *membership.Session
	for failures := 0; life.Err() == nil; {
		s, err := c.member.Join(life)
		if errors.Is(err, membership.ErrSessionTimeout) {
			return nil, err
		}
		if err != nil {
			if life.Err() == nil {
				c.trouble.Report("join", err)
				backoff.Wait(life, failures)
				failures++
			}
			continue
		}
		failures = 0
		c.trouble.Report("join", nil)
		c.metrics.Rebalances.WithLabelValues(c.group, c.cfg.Topic).Inc()
		c.takeOver(ctx, last, s)
		last = s
		if ready != nil {
			ready()
			ready = nil
		}
		switch c.serve(life, s) {
		case membership.Leaving:
			return s, nil
		case membership.Evicted:
			c.loseAll(lostEvicted)
			last = nil
		case membership.UnknownMember:
			c.loseAll(lostEvicted)
			c.member.Forget()
			last = nil
		default:
			// Still a member of the old generation: commit what is finished before the
			// next owner asks for the offsets.
			if err := c.commit(life, s); err != nil {
				c.logger.Debug("the commit before a rebalance failed", "error", err)
			}
		}
	}
	return nil, nil
}

// serve keeps the session alive and commits until it ends.
func (c *consumer) serve(life context.Context, s *membership.Session) membership.Outcome {
	ctx, stop := context.WithCancel(life)
	over := make(chan membership.Outcome, 2)
	var wg sync.WaitGroup
	wg.Go(func() { over <- c.heartbeat(ctx, s) })
	wg.Go(func() { over <- c.commitPeriodically(ctx, s) })
	o := <-over
	stop()
	wg.Wait()
	if second := <-over; second > o { // the more specific outcome
		o = second
	}
	return o
}

// takeOver applies the session's assignment: partitions that stay are not interrupted, those
// that moved to another member are lost, new ones are started.
func (c *consumer) takeOver(ctx context.Context, last, s *membership.Session) {
	// If we missed a generation, another member may have owned our partitions in it.
	stays := last != nil && last.Member == s.Member && last.Generation+1 == s.Generation
	if !stays {
		c.loseAll(lostEvicted)
	}
	c.mu.Lock()
	var lost, gained []*partition
	for id, p := range c.parts {
		if !slices.Contains(s.Assigned, id) {
			lost = append(lost, p)
			delete(c.parts, id)
		}
	}
	for _, id := range s.Assigned {
		if c.parts[id] == nil && ctx.Err() == nil { // start nothing new while draining
			p := newPartition(ctx, c, id)
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
		c.budget.Join(&p.budget)
	}
	for _, p := range gained {
		c.wg.Go(p.run)
	}
	c.logger.Info("joined the group", "generation", s.Generation, "partitions", s.Assigned, "kept", kept, "gained", len(gained), "lost", len(lost))
}

// lossReason says in the log why all partitions were lost; empty: not worth logging.
type lossReason string

const lostEvicted lossReason = "the group moved on without this member"

// loseAll gives up every partition.
func (c *consumer) loseAll(why lossReason) {
	c.mu.Lock()
	parts := c.parts
	c.parts = map[int]*partition{}
	c.mu.Unlock()
	if len(parts) > 0 && why != "" {
		c.logger.Warn("lost all partitions: "+string(why), "partitions", len(parts))
	}
	for _, p := range parts {
		p.lose()
	}
}

// owned returns the ids of the partitions that this member owns.
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

// drained is called when a partition has nothing in flight, and when a handler returned.
func (c *consumer) drained() { signal(c.idle) }

// drain waits until ctx ends and then until nothing is in flight, but no longer than the drain
// timeout.
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
			n += p.inFlight - p.resting
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
			c.logger.Warn("stopping with unfinished records; they will be read again", "records", n)
			return
		}
	}
}
