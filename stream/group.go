package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/assign"
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
		res, err := c.members.Join(ctx, c.member, c.owned())
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

// sync receives this member's assignment. The group's leader computes everyone's and sends them
// along.
func (c *consumer) sync(ctx context.Context, joined *kafka.JoinGroupResponse) (*session, error) {
	cfg := &c.cl.cfg
	s := &session{member: joined.MemberID, generation: joined.GenerationID, leader: joined.MemberID == joined.LeaderID}
	ctx, cancel := context.WithTimeout(ctx, cfg.RebalanceTimeout+cfg.RequestTimeout)
	defer cancel()
	var all map[string][]int
	if s.leader {
		n, err := c.cl.layout.Partitions(ctx, c.cfg.Topic)
		if err != nil {
			return nil, err
		}
		s.partitions = n
		had := map[string][]int{}
		for i := range joined.Members {
			had[joined.Members[i].ID] = c.members.Owned(&joined.Members[i])
		}
		all = assign.Sticky(n, had)
	}
	assigned, err := c.members.Sync(ctx, s.generation, s.member, all)
	if err != nil {
		return nil, err
	}
	s.assigned = slices.Clone(assigned)
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

// sendHeartbeat sends one heartbeat.
func (c *consumer) sendHeartbeat(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, min(c.cl.cfg.RequestTimeout, c.cl.cfg.SessionTimeout))
	defer cancel()
	if c.coordinator == nil {
		addr, err := c.members.Coordinator(ctx)
		if err != nil {
			return err
		}
		c.coordinator = addr
	}
	err := c.members.Heartbeat(ctx, c.coordinator, s.generation, s.member)
	if err != nil && outcomeOf(err) == stillMember {
		c.coordinator = nil // another broker may be the coordinator now
	}
	return err
}

// leave announces that this member leaves. If the request fails, the others wait for the session timeout.
func (c *consumer) leave(ctx context.Context) {
	if c.member == "" {
		return
	}
	if err := c.members.Leave(ctx, c.member); err != nil {
		c.logger.Warn("leaving the group", "error", err)
	}
}
