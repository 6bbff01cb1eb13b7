package stream

import (
	"context"
	"time"

	"github.com/batchyard/batchyard/stream/internal/membership"
)

// membership is the protocol of a stage's consumer group for a topic.
func (cl *Client) membership(group, topic string) *membership.Group {
	return &membership.Group{
		Kafka: cl.kafka, Transport: cl.transport, ID: cl.GroupID(group, topic), Topic: cl.full(topic),
		SessionTimeout: cl.cfg.SessionTimeout, RebalanceTimeout: cl.cfg.RebalanceTimeout, RequestTimeout: cl.cfg.RequestTimeout,
	}
}

// newMember returns the consumer's membership of its membership.
func (c *consumer) newMember() *membership.Member {
	return &membership.Member{
		Group: c.cl.membership(c.cfg.Group, c.cfg.Topic), Has: c.owned, Evicted: func() { c.loseAll(lostEvicted) },
		Count: func(ctx context.Context) (int, error) { return c.cl.layout.Partitions(ctx, c.cfg.Topic) },
	}
}

// heartbeat sends heartbeats until the session ends.
func (c *consumer) heartbeat(ctx context.Context, s *membership.Session) membership.Outcome {
	ticker := time.NewTicker(c.cl.cfg.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return membership.Leaving
		case <-ticker.C:
		}
		err := c.member.Heartbeat(ctx, s)
		if o := membership.OutcomeOf(err); o != membership.StillMember {
			return o
		}
		if ctx.Err() != nil {
			return membership.Leaving
		}
		c.trouble.Report("heartbeat", err)
		// The topic has new partitions: the leader triggers a rebalance.
		if s.Leader && len(c.cl.layout.Leaders(c.cfg.Topic)) != s.Partitions {
			return membership.Rebalancing
		}
	}
}
