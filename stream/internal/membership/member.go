package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/assign"
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

// Member is a member of a group. Join is called by one goroutine, and Heartbeat by one between two Joins.
type Member struct {
	*Group
	Has     func() []int                           // partitions that it owns
	Evicted func()                                 // they were given to other members
	Count   func(ctx context.Context) (int, error) // of the topic's partitions

	id          string
	coordinator net.Addr // used only by heartbeats; nil: look it up
}

// Forget makes the next Join that of a new member.
func (m *Member) Forget() { m.id = "" }

// Join makes this process a member of the next generation. It keeps its id, so that the broker recognizes
// the same member when it tries again.
func (m *Member) Join(ctx context.Context) (*Session, error) {
	for {
		res, err := m.join(ctx, m.id, m.Has())
		if err != nil {
			return nil, err
		}
		switch err := res.Error; {
		case err == nil:
			m.id = res.MemberID
			return m.receive(ctx, res)
		case errors.Is(err, kafka.MemberIDRequired):
			m.id = res.MemberID // the broker has chosen an id; join again with it
		case errors.Is(err, kafka.UnknownMemberId), errors.Is(err, kafka.FencedInstanceID):
			// Our session timed out; our partitions were given to other members.
			if m.id == "" {
				return nil, fmt.Errorf("joining group %s: %w", m.ID, err)
			}
			m.id = ""
			m.Evicted()
		case errors.Is(err, kafka.InvalidSessionTimeout):
			return nil, fmt.Errorf("joining group %s: %w (%w)", m.ID, ErrSessionTimeout, err)
		default:
			return nil, fmt.Errorf("joining group %s: %w", m.ID, err)
		}
	}
}

// receive receives this member's assignment. The group's leader computes everyone's and sends them along.
func (m *Member) receive(ctx context.Context, joined *kafka.JoinGroupResponse) (*Session, error) {
	s := &Session{Member: joined.MemberID, Generation: joined.GenerationID, Leader: joined.MemberID == joined.LeaderID}
	ctx, cancel := context.WithTimeout(ctx, m.RebalanceTimeout+m.RequestTimeout)
	defer cancel()
	var all map[string][]int
	if s.Leader {
		n, err := m.Count(ctx)
		if err != nil {
			return nil, err
		}
		s.Partitions = n
		had := map[string][]int{}
		for i := range joined.Members {
			had[joined.Members[i].ID] = joined.Members[i].Metadata.OwnedPartitions[m.Topic]
		}
		all = assign.Sticky(n, had)
	}
	assigned, err := m.sync(ctx, s.Generation, s.Member, all)
	if err != nil {
		return nil, err
	}
	s.Assigned = slices.Clone(assigned)
	slices.Sort(s.Assigned)
	s.Assigned = slices.Compact(s.Assigned)
	return s, nil
}

// Heartbeat sends one heartbeat.
func (m *Member) Heartbeat(ctx context.Context, s *Session) error {
	ctx, cancel := context.WithTimeout(ctx, min(m.RequestTimeout, m.SessionTimeout))
	defer cancel()
	if m.coordinator == nil {
		addr, err := m.findCoordinator(ctx)
		if err != nil {
			return err
		}
		m.coordinator = addr
	}
	err := m.heartbeat(ctx, m.coordinator, s.Generation, s.Member)
	if err != nil && OutcomeOf(err) == StillMember {
		m.coordinator = nil // another broker may be the coordinator now
	}
	return err
}

// Leave announces that this member leaves. If the request fails, the others wait for the session timeout.
func (m *Member) Leave(ctx context.Context) error {
	if m.id == "" {
		return nil
	}
	return m.leave(ctx, m.id)
}
