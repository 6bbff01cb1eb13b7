package stream

import (
	"context"
	"time"

	"github.com/batchyard/batchyard/stream/internal/group"
)

// newMember returns the consumer's membership of its group.
func (c *consumer) newMember() *group.Member {
	cfg := &c.cl.cfg
	return &group.Member{
		Kafka: c.cl.kafka, Transport: c.cl.transport, Group: c.group, Topic: c.cl.full(c.cfg.Topic),
		Timeouts: group.Timeouts{Session: cfg.SessionTimeout, Rebalance: cfg.RebalanceTimeout, Request: cfg.RequestTimeout},
		Owned:    c.owned, Evicted: func() { c.loseAll(lostEvicted) },
		Count: func(ctx context.Context) (int, error) { return c.cl.layout.Partitions(ctx, c.cfg.Topic) },
	}
}

// heartbeat sends heartbeats until the session ends.
func (c *consumer) heartbeat(ctx context.Context, s *group.Session) group.Outcome {
	ticker := time.NewTicker(c.cl.cfg.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return group.Leaving
		case <-ticker.C:
		}
		err := c.member.Heartbeat(ctx, s)
		if o := group.OutcomeOf(err); o != group.StillMember {
			return o
		}
		if ctx.Err() != nil {
			return group.Leaving
		}
		c.report("heartbeat", err)
		// The topic has new partitions: the leader triggers a rebalance.
		if s.Leader && len(c.cl.layout.Leaders(c.cfg.Topic)) != s.Partitions {
			return group.Rebalancing
		}
	}
}
