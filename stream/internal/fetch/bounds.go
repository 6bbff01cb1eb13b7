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
	f, err := ask(ctx, client, kafka.ReadCommitted, topic, kafka.FirstOffsetOf(id))
	if err != nil {
		return 0, 0, err
	}
	e, err := ask(ctx, client, kafka.ReadCommitted, topic, kafka.LastOffsetOf(id))
	return f.FirstOffset, e.LastOffset, err
}

// Last returns the offset after the last record of a partition, whether it can be read or stands behind an open
// transaction. The topic's name has the prefix.
func Last(ctx context.Context, client *kafka.Client, topic string, id int) (int64, error) {
	p, err := ask(ctx, client, kafka.ReadUncommitted, topic, kafka.LastOffsetOf(id))
	return p.LastOffset, err
}

func ask(ctx context.Context, client *kafka.Client, level kafka.IsolationLevel, topic string, which kafka.OffsetRequest) (kafka.PartitionOffsets, error) {
	res, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {which}}, IsolationLevel: level})
	if err == nil {
		err = membership.ErrNoAnswer
		for _, p := range res.Topics[topic] {
			if p.Partition == which.Partition {
				if err = p.Error; err == nil {
					return p, nil
				}
			}
		}
	}
	return kafka.PartitionOffsets{}, fmt.Errorf("asking for the first and last offset of %s/%d: %w", topic, which.Partition, err)
}
