package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// DeleteTopics deletes all topics and the records in them, for tests and benchmarks. A topic that does not
// exist is not an error. The groups' offsets stay until the broker expires them.
func (cl *Client) DeleteTopics(ctx context.Context) error {
	req := &kafka.DeleteTopicsRequest{}
	for _, t := range Topics {
		req.Topics = append(req.Topics, cl.full(t.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, 3*cl.cfg.RequestTimeout)
	defer cancel()
	res, err := cl.kafka.DeleteTopics(ctx, req)
	if err != nil {
		return fmt.Errorf("deleting topics: %w", err)
	}
	for topic, terr := range res.Errors {
		if terr != nil && !errors.Is(terr, kafka.UnknownTopicOrPartition) {
			err = errors.Join(err, fmt.Errorf("deleting topic %s: %w", topic, terr))
		}
	}
	return err
}
