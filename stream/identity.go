package stream

import (
	"context"
	"fmt"

	"github.com/batchyard/batchyard/stream/internal/topicid"
)

// Identity tells a topic from another one of the same name.
type Identity struct {
	Topic   string // id of the topic, in hex; empty: the broker has no ids, as before Kafka 2.8
	Cluster string // id of the cluster; empty: the broker does not say
}

// Identity asks a broker which topic it has under this name. A topic that was deleted and created
// again, or that belongs to another cluster, has another identity.
func (cl *Client) Identity(ctx context.Context, topic string) (Identity, error) {
	if _, err := findTopic(topic); err != nil {
		return Identity{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	name := cl.full(topic)
	got, err := topicid.Ask(ctx, cl.transport, cl.addr, []string{name})
	if err != nil {
		return Identity{}, fmt.Errorf("asking for the id of topic %s: %w", name, err)
	}
	id := Identity{Topic: got.IDs[name], Cluster: got.Cluster}
	if got.Known && id.Topic == "" {
		return Identity{}, fmt.Errorf("asking for the id of topic %s: the broker does not have it; run `batchyard topics create` if it is missing", name)
	}
	if !got.Known {
		meta, err := cl.freshMetadata(ctx)
		if err != nil {
			return Identity{}, fmt.Errorf("asking for the id of the cluster: %w", err)
		}
		id.Cluster = meta.ClusterID
	}
	return id, nil
}

// Bounds returns the first offset of a partition and the one after its last.
func (cl *Client) Bounds(ctx context.Context, topic string, partition int) (first, end int64, err error) {
	if _, err := findTopic(topic); err != nil {
		return 0, 0, err
	}
	err = cl.withRetries(ctx, func(ctx context.Context) (err error) {
		first, end, err = cl.bounds(ctx, topic, partition)
		return err
	})
	return first, end, err
}
