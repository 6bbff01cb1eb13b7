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
	partitions int   // of the topic, when the leader dealt them out
	assigned   []int // to this member
}

// outcome is how a session ended.
type outcome int

const (
	ended      outcome = iota // we are leaving
	rebalance                 // others came or went: join again, keep what stays ours
	evicted                   // the group went on without us: what we had is somebody else's
	unknown                   // evicted, and the broker does not know the member any more
	nothingNew                // go on
)

// outcomeOf reads the answer of the group's coordinator.
func outcomeOf(err error) outcome {
	switch {
	case errors.Is(err, kafka.RebalanceInProgress):
		return rebalance
	case errors.Is(err, kafka.IllegalGeneration):
		return evicted
	case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
		return unknown
	}
	return nothingNew
}

// errSession is what no retry can help.
var errSession = errors.New("the broker does not allow this kafka.session_timeout: choose one between its group.min.session.timeout.ms (6s by default) and group.max.session.timeout.ms")

// join makes this process a member of the next generation. It keeps the member
// id in c, so that the broker takes a second attempt for the same member.
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
			c.member = res.MemberID // the broker made one up; come again with it
		case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
			// Our time was up. Whatever we had was given to others.
			if c.member == "" {
				return nil, fmt.Errorf("joining group %s: %w", c.group, err)
			}
			c.member = ""
			c.loseAll("the group went on without this member")
		case errors.Is(err, kafka.InvalidSessionTimeout):
			return nil, fmt.Errorf("joining group %s: %w (%w)", c.group, errSession, err)
		default:
			return nil, fmt.Errorf("joining group %s: %w", c.group, err)
		}
	}
}

func (c *consumer) joinOnce(ctx context.Context) (*kafka.JoinGroupResponse, error) {
	cfg := &c.l.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.RebalanceTimeout+cfg.RequestTimeout)
	defer cancel()
	topic := c.l.full(c.cfg.Topic)
	res, err := c.l.client.JoinGroup(ctx, &kafka.JoinGroupRequest{
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

// sync learns what the leader dealt out; the leader deals.
func (c *consumer) sync(ctx context.Context, joined *kafka.JoinGroupResponse) (*session, error) {
	cfg := &c.l.cfg
	topic := c.l.full(c.cfg.Topic)
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
		n, err := c.l.layout.partitions(ctx, c.cfg.Topic)
		if err != nil {
			return nil, err
		}
		s.partitions = n
		had := map[string][]int{}
		for _, m := range joined.Members {
			had[m.ID] = m.Metadata.OwnedPartitions[topic]
		}
		for member, parts := range deal(n, had) {
			req.Assignments = append(req.Assignments, kafka.SyncGroupRequestAssignment{
				MemberID:   member,
				Assignment: kafka.GroupProtocolAssignment{AssignedPartitions: map[string][]int{topic: parts}},
			})
		}
	}
	res, err := c.l.client.SyncGroup(ctx, req)
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("learning which partitions of group %s are ours: %w", c.group, err)
	}
	s.assigned = slices.Clone(res.Assignment.AssignedPartitions[topic])
	slices.Sort(s.assigned)
	s.assigned = slices.Compact(s.assigned)
	return s, nil
}

// deal spreads n partitions evenly over the members, leaving with each as many
// as it may keep of those it had.
func deal(n int, had map[string][]int) map[string][]int {
	members := make([]string, 0, len(had))
	for m := range had {
		members = append(members, m)
	}
	// Who had most keeps the one more that some members get.
	slices.SortFunc(members, func(a, b string) int {
		if d := len(had[b]) - len(had[a]); d != 0 {
			return d
		}
		if a < b {
			return -1
		}
		return 1
	})
	out := make(map[string][]int, len(members))
	if len(members) == 0 {
		return out
	}
	taken := make([]bool, n)
	quota := make(map[string]int, len(members))
	for i, m := range members {
		quota[m] = n / len(members)
		if i < n%len(members) {
			quota[m]++
		}
		out[m] = []int{}
		for _, p := range had[m] {
			if p >= 0 && p < n && !taken[p] && len(out[m]) < quota[m] {
				taken[p] = true
				out[m] = append(out[m], p)
			}
		}
	}
	i := 0
	for p := range n {
		if taken[p] {
			continue
		}
		for len(out[members[i]]) >= quota[members[i]] {
			i++
		}
		out[members[i]] = append(out[members[i]], p)
	}
	for _, parts := range out {
		slices.Sort(parts)
	}
	return out
}

// heartbeat tells the broker that we live until the session ends.
func (c *consumer) heartbeat(ctx context.Context, s *session) outcome {
	ticker := time.NewTicker(c.l.cfg.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ended
		case <-ticker.C:
		}
		err := c.beat(ctx, s)
		if o := outcomeOf(err); o != nothingNew {
			return o
		}
		if ctx.Err() != nil {
			return ended
		}
		c.report("heartbeat", err)
		// New partitions: the leader deals anew.
		if s.leader && len(c.l.layout.leaders(c.cfg.Topic)) != s.partitions {
			return rebalance
		}
	}
}

// beat sends one heartbeat. The client's own Heartbeat is of no use: it asks any
// broker instead of the group's coordinator, and it reads the answer's fields
// in the wrong order, so that it never sees an error.
func (c *consumer) beat(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, min(c.l.cfg.RequestTimeout, c.l.cfg.SessionTimeout))
	defer cancel()
	if c.coordinator == nil {
		addr, err := c.findCoordinator(ctx)
		if err != nil {
			return err
		}
		c.coordinator = addr
	}
	res, err := c.l.transport.RoundTrip(ctx, c.coordinator, &heartbeat.Request{
		GroupID: c.group, GenerationID: int32(s.generation), MemberID: s.member,
	})
	if err == nil {
		err = heartbeatError(res.(*heartbeat.Response))
	}
	if err != nil && outcomeOf(err) == nothingNew {
		c.coordinator = nil // perhaps another broker is it now
	}
	return err
}

// heartbeatError finds the error in an answer that was decoded as if the error
// (2 bytes) came before the throttle time (4 bytes), while it comes after.
func heartbeatError(r *heartbeat.Response) error {
	if code := int16(r.ThrottleTimeMs & 0xffff); code != 0 {
		return kafka.Error(code)
	}
	return nil
}

// findCoordinator asks which broker looks after the group.
func (c *consumer) findCoordinator(ctx context.Context) (net.Addr, error) {
	res, err := c.l.client.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: c.group, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the coordinator of group %s: %w", c.group, err)
	}
	return kafka.TCP(net.JoinHostPort(res.Coordinator.Host, strconv.Itoa(res.Coordinator.Port))), nil
}

// leave tells the group that we go, so that others need not wait for the
// session timeout. When it does not get through, they wait.
func (c *consumer) leave(ctx context.Context) {
	if c.member == "" {
		return
	}
	_, err := c.l.client.LeaveGroup(ctx, &kafka.LeaveGroupRequest{
		GroupID: c.group, Members: []kafka.LeaveGroupRequestMember{{ID: c.member}},
	})
	if err != nil {
		c.log.Warn("leaving the group", "error", err)
	}
}
