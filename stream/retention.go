package stream

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// Retention asks a broker how long it keeps the records of a topic; 0: without a limit. An operator may have
// changed what Batchyard configured when it created the topic.
func (cl *Client) Retention(ctx context.Context, topic string) (time.Duration, error) {
	if _, err := findTopic(topic); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	const name = "retention.ms"
	res, err := cl.kafka.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{
		{ResourceType: kafka.ResourceTypeTopic, ResourceName: cl.full(topic), ConfigNames: []string{name}},
	}})
	if err == nil && len(res.Resources) == 1 {
		err = res.Resources[0].Error
	}
	if err == nil {
		for _, r := range res.Resources {
			for _, e := range r.ConfigEntries {
				if e.ConfigName != name {
					continue
				}
				ms, err := strconv.ParseInt(e.ConfigValue, 10, 64)
				if err != nil {
					return 0, fmt.Errorf("reading %s of topic %s: %w", name, cl.full(topic), err)
				}
				return time.Duration(min(max(ms, 0), int64(maxRetention/time.Millisecond))) * time.Millisecond, nil
			}
		}
		err = errNoAnswer
	}
	return 0, fmt.Errorf("asking for %s of topic %s: %w", name, cl.full(topic), err)
}

// maxRetention is the longest that is told from none.
const maxRetention = 100 * 365 * 24 * time.Hour
