package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// DeleteTopics deletes the topics, with all that they hold; those that are not
// there are no error. It is for what was made for a measurement: an
// installation's topics are its operators' to delete. The groups' offsets stay
// until the broker forgets them.
func (l *Log) DeleteTopics(ctx context.Context) error {
	req := &kafka.DeleteTopicsRequest{}
	for _, t := range Topics {
		req.Topics = append(req.Topics, l.full(t.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, 3*l.cfg.RequestTimeout)
	defer cancel()
	res, err := l.client.DeleteTopics(ctx, req)
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
