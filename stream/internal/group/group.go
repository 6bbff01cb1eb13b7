// Package group speaks Kafka's consumer group protocol: how a process becomes a member, learns its
// partitions, and stays one.
package group

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

// Session is a membership in one generation of a group.
type Session struct {
	Member     string
	Generation int
	Leader     bool
	Partitions int   // of the topic, when the leader assigned them
	Assigned   []int // to this member
}

// Outcome is how a session ended. The higher one wins when two goroutines report.
type Outcome int

// The outcomes.
const (
	Leaving       Outcome = iota // this member leaves
	Rebalancing                  // other members came or went: join again, keep what stays ours
	Evicted                      // the group moved on without us: other members own our partitions
	UnknownMember                // evicted, and the broker has forgotten the member id
	StillMember                  // the session has not ended
)

// OutcomeOf classifies the answer of the group's coordinator.
func OutcomeOf(err error) Outcome {
	switch {
	case errors.Is(err, kafka.RebalanceInProgress):
		return Rebalancing
	case errors.Is(err, kafka.IllegalGeneration):
		return Evicted
	case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
		return UnknownMember
	}
	return StillMember
}

// ErrSessionTimeout cannot be fixed by retrying.
var ErrSessionTimeout = errors.New("the broker does not allow this kafka.session_timeout: use a value between its group.min.session.timeout.ms (6s by default) and group.max.session.timeout.ms")

// Timeouts of the protocol.
type Timeouts struct{ Session, Rebalance, Request time.Duration }

// Member is a member of a group that reads one topic. Join is called by one goroutine, and Heartbeat by
// one between two Joins.
type Member struct {
	Kafka     *kafka.Client
	Transport *kafka.Transport
	Group     string
	Topic     string // prefix included
	Timeouts  Timeouts
	Owned     func() []int                           // partitions that it has
	Evicted   func()                                 // they were given to other members
	Count     func(ctx context.Context) (int, error) // of the topic's partitions

	id          string
	coordinator net.Addr // used only by heartbeats; nil: look it up
}

// Forget makes the next Join that of a new member.
func (c *Member) Forget() { c.id = "" }

// Join makes this process a member of the next generation. It keeps its id, so
// that the broker recognizes the same member when it tries again.
func (c *Member) Join(ctx context.Context) (*Session, error) {
	for {
		res, err := c.joinOnce(ctx)
		if err != nil {
			return nil, err
		}
		switch err := res.Error; {
		case err == nil:
			c.id = res.MemberID
			return c.sync(ctx, res)
		case errors.Is(err, kafka.MemberIDRequired):
			c.id = res.MemberID // the broker has chosen an id; join again with it
		case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
			// Our session timed out; our partitions were given to other members.
			if c.id == "" {
				return nil, fmt.Errorf("joining group %s: %w", c.Group, err)
			}
			c.id = ""
			c.Evicted()
		case errors.Is(err, kafka.InvalidSessionTimeout):
			return nil, fmt.Errorf("joining group %s: %w (%w)", c.Group, ErrSessionTimeout, err)
		default:
			return nil, fmt.Errorf("joining group %s: %w", c.Group, err)
		}
	}
}

func (c *Member) joinOnce(ctx context.Context) (*kafka.JoinGroupResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeouts.Rebalance+c.Timeouts.Request)
	defer cancel()
	res, err := c.Kafka.JoinGroup(ctx, &kafka.JoinGroupRequest{
		GroupID:          c.Group,
		MemberID:         c.id,
		SessionTimeout:   c.Timeouts.Session,
		RebalanceTimeout: c.Timeouts.Rebalance,
		ProtocolType:     protocolType,
		Protocols: []kafka.GroupProtocol{{
			Name: protocolName,
			Metadata: kafka.GroupProtocolSubscription{
				Topics:          []string{c.Topic},
				OwnedPartitions: map[string][]int{c.Topic: c.Owned()},
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("joining group %s: %w", c.Group, err)
	}
	return res, nil
}

// sync receives this member's assignment. The group's leader computes everyone's and sends them
// along.
func (c *Member) sync(ctx context.Context, joined *kafka.JoinGroupResponse) (*Session, error) {
	s := &Session{Member: joined.MemberID, Generation: joined.GenerationID, Leader: joined.MemberID == joined.LeaderID}
	req := &kafka.SyncGroupRequest{
		GroupID:      c.Group,
		GenerationID: s.Generation,
		MemberID:     s.Member,
		ProtocolType: protocolType,
		ProtocolName: protocolName,
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeouts.Rebalance+c.Timeouts.Request)
	defer cancel()
	if s.Leader {
		n, err := c.Count(ctx)
		if err != nil {
			return nil, err
		}
		s.Partitions = n
		had := map[string][]int{}
		for _, m := range joined.Members {
			had[m.ID] = m.Metadata.OwnedPartitions[c.Topic]
		}
		for member, parts := range assign.Sticky(n, had) {
			req.Assignments = append(req.Assignments, kafka.SyncGroupRequestAssignment{
				MemberID:   member,
				Assignment: kafka.GroupProtocolAssignment{AssignedPartitions: map[string][]int{c.Topic: parts}},
			})
		}
	}
	res, err := c.Kafka.SyncGroup(ctx, req)
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("receiving the assignment in group %s: %w", c.Group, err)
	}
	s.Assigned = slices.Clone(res.Assignment.AssignedPartitions[c.Topic])
	slices.Sort(s.Assigned)
	s.Assigned = slices.Compact(s.Assigned)
	return s, nil
}

// Heartbeat sends one heartbeat. kafka-go's own Heartbeat cannot be used: it asks any
// broker instead of the group's coordinator, and it decodes the answer's fields in the wrong
// order, so it never sees an error.
func (c *Member) Heartbeat(ctx context.Context, s *Session) error {
	ctx, cancel := context.WithTimeout(ctx, min(c.Timeouts.Request, c.Timeouts.Session))
	defer cancel()
	if c.coordinator == nil {
		addr, err := c.findCoordinator(ctx)
		if err != nil {
			return err
		}
		c.coordinator = addr
	}
	res, err := c.Transport.RoundTrip(ctx, c.coordinator, &heartbeat.Request{
		GroupID: c.Group, GenerationID: int32(s.Generation), MemberID: s.Member,
	})
	if err == nil {
		err = heartbeatError(res.(*heartbeat.Response))
	}
	if err != nil && OutcomeOf(err) == StillMember {
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
func (c *Member) findCoordinator(ctx context.Context) (net.Addr, error) {
	res, err := c.Kafka.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: c.Group, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("finding the coordinator of group %s: %w", c.Group, err)
	}
	return kafka.TCP(net.JoinHostPort(res.Coordinator.Host, strconv.Itoa(res.Coordinator.Port))), nil
}

// Leave announces that this member leaves, so that the others need not wait for the session
// timeout. If the request fails, they wait.
func (c *Member) Leave(ctx context.Context) error {
	if c.id == "" {
		return nil
	}
	_, err := c.Kafka.LeaveGroup(ctx, &kafka.LeaveGroupRequest{
		GroupID: c.Group, Members: []kafka.LeaveGroupRequestMember{{ID: c.id}},
	})
	return err
}
