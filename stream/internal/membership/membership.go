// Package membership speaks Kafka's consumer-group protocol for one group and one topic: [Group] sends the
// requests, and [Member] is how a process becomes a member, learns its partitions, and stays one.
package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/heartbeat"
)

const (
	protocolType = "consumer"
	protocolName = "batchyard-sticky"
)

// ErrNoAnswer is the error of a partition that the broker's answer left out.
var ErrNoAnswer = errors.New("the broker's answer does not mention the partition")

// Group sends the requests of a consumer group that reads one topic.
type Group struct {
	Kafka     *kafka.Client
	Transport *kafka.Transport
	ID        string
	Topic     string // with the prefix

	SessionTimeout, RebalanceTimeout, RequestTimeout time.Duration
}

// join asks to be a member of the next generation. The member id is empty at first.
func (g *Group) join(ctx context.Context, member string, owned []int) (*kafka.JoinGroupResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, g.RebalanceTimeout+g.RequestTimeout)
	defer cancel()
	res, err := g.Kafka.JoinGroup(ctx, &kafka.JoinGroupRequest{
		GroupID:          g.ID,
		MemberID:         member,
		SessionTimeout:   g.SessionTimeout,
		RebalanceTimeout: g.RebalanceTimeout,
		ProtocolType:     protocolType,
		Protocols: []kafka.GroupProtocol{{
			Name: protocolName,
			Metadata: kafka.GroupProtocolSubscription{
				Topics:          []string{g.Topic},
				OwnedPartitions: map[string][]int{g.Topic: owned},
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("joining group %s: %w", g.ID, err)
	}
	return res, nil
}

// sync returns the partitions that are assigned to the member. The leader sends those of all members, by
// member id; the others send none.
func (g *Group) sync(ctx context.Context, generation int, member string, all map[string][]int) ([]int, error) {
	req := &kafka.SyncGroupRequest{GroupID: g.ID, GenerationID: generation, MemberID: member, ProtocolType: protocolType, ProtocolName: protocolName}
	for member, parts := range all {
		req.Assignments = append(req.Assignments, kafka.SyncGroupRequestAssignment{
			MemberID:   member,
			Assignment: kafka.GroupProtocolAssignment{AssignedPartitions: map[string][]int{g.Topic: parts}},
		})
	}
	res, err := g.Kafka.SyncGroup(ctx, req)
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("receiving the assignment in group %s: %w", g.ID, err)
	}
	return res.Assignment.AssignedPartitions[g.Topic], nil
}

// heartbeat sends a heartbeat to the group's coordinator. kafka-go's own Heartbeat cannot be used: it asks
// any broker instead, and it decodes the answer's fields in the wrong order, so it never sees an error.
func (g *Group) heartbeat(ctx context.Context, coordinator net.Addr, generation int, member string) error {
	res, err := g.Transport.RoundTrip(ctx, coordinator, &heartbeat.Request{GroupID: g.ID, GenerationID: int32(generation), MemberID: member})
	if err != nil {
		return err
	}
	return heartbeatError(res.(*heartbeat.Response))
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
func (g *Group) findCoordinator(ctx context.Context) (net.Addr, error) {
	res, err := g.Kafka.FindCoordinator(ctx, &kafka.FindCoordinatorRequest{Key: g.ID, KeyType: kafka.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return nil, fmt.Errorf("finding the coordinator of group %s: %w", g.ID, err)
	}
	return kafka.TCP(net.JoinHostPort(res.Coordinator.Host, strconv.Itoa(res.Coordinator.Port))), nil
}

// leave announces that the member leaves, so that the others need not wait for the session timeout.
func (g *Group) leave(ctx context.Context, member string) error {
	_, err := g.Kafka.LeaveGroup(ctx, &kafka.LeaveGroupRequest{GroupID: g.ID, Members: []kafka.LeaveGroupRequestMember{{ID: member}}})
	return err
}

// Committed returns the group's committed offset in a partition and its metadata, or -1 without one.
func (g *Group) Committed(ctx context.Context, partition int) (int64, string, error) {
	ctx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
	defer cancel()
	res, err := g.Kafka.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: g.ID, Topics: map[string][]int{g.Topic: {partition}}})
	if err == nil {
		err = res.Error
	}
	if err == nil {
		for _, p := range res.Topics[g.Topic] {
			if p.Partition == partition && p.Error == nil {
				return p.CommittedOffset, p.Metadata, nil
			}
			if p.Partition == partition {
				err = p.Error
			}
		}
		if err == nil {
			err = ErrNoAnswer
		}
	}
	return 0, "", fmt.Errorf("asking for the committed offset of group %s at %s/%d: %w", g.ID, g.Topic, partition, err)
}

// Commit commits offsets as a member of a generation. It returns the error of each partition, and one that
// concerns all of them; a partition without an answer has an error.
func (g *Group) Commit(ctx context.Context, generation int, member string, commits []kafka.OffsetCommit) (map[int]error, error) {
	res, err := g.Kafka.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: g.ID, GenerationID: generation, MemberID: member, Topics: map[string][]kafka.OffsetCommit{g.Topic: commits},
	})
	errs := make(map[int]error, len(commits))
	for _, c := range commits {
		errs[c.Partition] = errors.Join(err, ErrNoAnswer)
	}
	if err == nil {
		for _, p := range res.Topics[g.Topic] {
			errs[p.Partition] = p.Error
		}
	}
	return errs, err
}
