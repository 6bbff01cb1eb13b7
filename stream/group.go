package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/heartbeat"

	"github.com/batchyard/batchyard/stream/internal/assign"
)

const (
	protocolType = "consumer"
	protocolName = "batchyard-sticky"
)

// session is a membership in one generation of a group.
type session struct {
	member     string
	generation int
	leader     bool
	partitions int   // of the topic, when the leader assigned them
	assigned   []int // to this member
}

// sessionOutcome is how a session ended. The higher one wins when two goroutines report.
type sessionOutcome int

const (
	leaving       sessionOutcome = iota // this member leaves
	rebalancing                         // other members came or went: join again, keep what stays ours
	evicted                             // the group moved on without us: other members own our partitions
	unknownMember                       // evicted, and the broker has forgotten the member id
	stillMember                         // the session has not ended
)

// outcomeOf classifies the answer of the group's coordinator.
func outcomeOf(err error) sessionOutcome {
	switch {
	case errors.Is(err, kafka.RebalanceInProgress):
		return rebalancing
	case errors.Is(err, kafka.IllegalGeneration):
		return evicted
	case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
		return unknownMember
	}
	return stillMember
}

// errSessionTimeout cannot be fixed by retrying.
var errSessionTimeout = errors.New("the broker does not allow this kafka.session_timeout: use a value between its group.min.session.timeout.ms (6s by default) and group.max.session.timeout.ms")

// Join makes this process a member of the next generation. It keeps the member id in c, so
// that the broker recognizes the same member when it tries again.
func (c *consumer) join(ctx context.Context) (*session, error) {
	for {
		res, err := c.joinOnce(ctx)
		if err != nil {
			return nil, err
		}
		switch err := res.Error; {
		case err == nil:
			c.member = res.MemberID
			return c.sync(ctx, res)
		case errors.Is(err, kafka.MemberIDRequired):
			c.member = res.MemberID // the broker has chosen an id; join again with it
		case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
			// Our session timed out; our partitions were given to other members.
			if c.member == "" {
				return nil, fmt.Errorf("joining group %s: %w", c.group, err)
			}
			c.member = ""
			c.loseAll(lostEvicted)
		case errors.Is(err, kafka.InvalidSessionTimeout):
			return nil, fmt.Errorf("joining group %s: %w (%w)", c.group, errSessionTimeout, err)
		default:
			return nil, fmt.Errorf("joining group %s: %w", c.group, err)
		}
	}
}

func (c *consumer) joinOnce(ctx context.Context) (*kafka.JoinGroupResponse, error) {
	cfg := &c.cl.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.RebalanceTimeout+cfg.RequestTimeout)
	defer cancel()
	topic := c.cl.full(c.cfg.Topic)
	res, err := c.cl.kafka.JoinGroup(ctx, &kafka.JoinGroupRequest{
		GroupID:          c.group,
		MemberID:         c.member,
		SessionTimeout:   cfg.SessionTimeout,
		RebalanceTimeout: cfg.RebalanceTimeout,
		ProtocolType:     protocolType,
		Protocols: []kafka.GroupProtocol{{
			Name: protocolName,
			Metadata: kafka.GroupProtocolSubscription{
				Topics:          []string{topic},
				OwnedPartitions: map[string][]int{topic: c.owned()},
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("joining group %s: %w", c.group, err)
	}
	return res, nil
}

// sync receives this member's assignment. The group's leader computes everyone's and sends them
// along.
func (c *consumer) sync(ctx context.Context, joined *kafka.JoinGroupResponse) (*session, error) {
	cfg := &c.cl.cfg
	topic := c.cl.full(c.cfg.Topic)
	s := &session{member: joined.MemberID, generation: joined.GenerationID, leader: joined.MemberID == joined.LeaderID}
	req := &kafka.SyncGroupRequest{
		GroupID:      c.group,
		GenerationID: s.generation,
		MemberID:     s.member,
		ProtocolType: protocolType,
		ProtocolName: protocolName,
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.RebalanceTimeout+cfg.RequestTimeout)
	defer cancel()
	if s.leader {
		n, err := c.cl.layout.Partitions(ctx, c.cfg.Topic)
		if err != nil {
			return nil, err
		}
		s.partitions = n
		had := map[string][]int{}
		for _, m := range joined.Members {
			had[m.ID] = m.Metadata.OwnedPartitions[topic]
		}
		for member, parts := range assign.Sticky(n, had) {
			req.Assignments = append(req.Assignments, kafka.SyncGroupRequestAssignment{
				MemberID:   member,
				Assignment: kafka.GroupProtocolAssignment{AssignedPartitions: map[string][]int{topic: parts}},
			})
		}
	}
	res, err := c.cl.kafka.SyncGroup(ctx, req)
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("receiving the assignment in group %s: %w", c.group, err)
	}
	s.assigned = slices.Clone(res.Assignment.AssignedPartitions[topic])
	slices.Sort(s.assigned)
	s.assigned = slices.Compact(s.assigned)
	return s, nil
}

// heartbeat sends heartbeats until the session ends.
func (c *consumer) heartbeat(ctx context.Context, s *session) sessionOutcome {
	ticker := time.NewTicker(c.cl.cfg.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return leaving
		case <-ticker.C:
		}
		err := c.sendHeartbeat(ctx, s)
		if o := outcomeOf(err); o != stillMember {
			return o
		}
		if ctx.Err() != nil {
			return leaving
		}
		c.report("heartbeat", err)
		// The topic has new partitions: the leader triggers a rebalance.
		if s.leader && len(c.cl.layout.Leaders(c.cfg.Topic)) != s.partitions {
			return rebalancing
		}
	}
}

// sendHeartbeat sends one heartbeat. kafka-go's own Heartbeat cannot be used: it asks any
// broker instead of the group's coordinator, and it decodes the answer's fields in the wrong
// order, so it never sees an error.
func (c *consumer) sendHeartbeat(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, min(c.cl.cfg.RequestTimeout, c.cl.cfg.SessionTimeout))
	defer cancel()
	if c.coordinator == nil {
		addr, err := c.findCoordinator(ctx)
		if err != nil {
			return err
		}
		c.coordinator = addr
	}
	res, err := c.cl.transport.RoundTrip(ctx, c.coordinator, &heartbeat.Request{
		GroupID: c.group, GenerationID: int32(s.generation), MemberID: s.member,
	})
	if err == nil {
		err = heartbeatError(res.(*heartbeat.Response))
	}
	if err != nil && outcomeOf(err) == stillMember {
		c.coordinator = nil // another broker may be the coordinator now
	}
	return err
}

// heartbeatError extracts the error from an answer that kafka-go decoded as if the error (2
// bytes) came before the throttle time (4 bytes). It comes after.
func heartbeatError(r *heartbeat.Response) error {
	if code := int16(r.ThrottleTimeMs & 0xffff); code != 0 {
		return kafka.Error(code)
	}
	return nil
}

// findCoordinator asks which broker coordinates the group.
func (c *consumer) findCoordinator(ctx context.Context) (net.Addr, error) {
	res, err := c.cl.kafka.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: c.group, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("finding the coordinator of group %s: %w", c.group, err)
	}
	return kafka.TCP(net.JoinHostPort(res.Coordinator.Host, strconv.Itoa(res.Coordinator.Port))), nil
}

// Leave announces that this member leaves, so that the others need not wait for the session
// timeout. If the request fails, they wait.
func (c *consumer) leave(ctx context.Context) {
	if c.member == "" {
		return
	}
	_, err := c.cl.kafka.LeaveGroup(ctx, &kafka.LeaveGroupRequest{
		GroupID: c.group, Members: []kafka.LeaveGroupRequestMember{{ID: c.member}},
	})
	if err != nil {
		c.logger.Warn("leaving the group", "error", err)
	}
}
