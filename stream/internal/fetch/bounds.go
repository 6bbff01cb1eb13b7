package fetch

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/membership"
)

// Bounds returns the first offset of a partition and the one after its last that can be read: open
// transactions are not. The topic's name has the prefix.
func Bounds(ctx context.Context, client *kafka.Client, topic string, id int) (first, end int64, err error) {
	ask := func(which kafka.OffsetRequest) (kafka.PartitionOffsets, error) {
		res, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
			Topics: map[string][]kafka.OffsetRequest{topic: {which}}, IsolationLevel: kafka.ReadCommitted,
		})
		if err != nil {
			return kafka.PartitionOffsets{}, err
		}
		for _, p := range res.Topics[topic] {
			if p.Partition == id {
				return p, p.Error
			}
		}
		return kafka.PartitionOffsets{}, membership.ErrNoAnswer
	}
	f, err := ask(kafka.FirstOffsetOf(id))
	if err == nil {
		var e kafka.PartitionOffsets
		e, err = ask(kafka.LastOffsetOf(id))
		first, end = f.FirstOffset, e.LastOffset
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking for the first and last offset of %s/%d: %w", topic, id, err)
	}
	return first, end, nil
}
