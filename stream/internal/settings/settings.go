// Package settings asks for the settings of topics, and judges whether they keep what they must.
package settings

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// Names of settings at the broker.
const (
	Cleanup        = "cleanup.policy"
	Retention      = "retention.ms"
	RetentionBytes = "retention.bytes"
	Timestamps     = "message.timestamp.type"
)

// LogAppendTime makes the broker stamp records with its own time. So a wrong clock of a process, or of a
// client, neither makes the broker refuse records nor makes retention delete them early.
const LogAppendTime = "LogAppendTime"

// Forever is the retention of a topic whose records are never deleted for their age.
const Forever time.Duration = -1

// maxRetention is the longest retention that is told apart from [Forever].
const maxRetention = 100 * 365 * 24 * time.Hour

// Topic is the settings of one topic.
type Topic struct {
	Retention  time.Duration // or Forever
	Bytes      int64         // per partition: the oldest records beyond are deleted; below 0: unlimited
	Compacted  bool          // the broker deletes all but the last record of each key
	BrokerTime bool          // records have the broker's time, not their writer's
}

// Ask asks a broker for the settings of topics. names maps the full names to those in the answer.
func Ask(ctx context.Context, client *kafka.Client, names map[string]string) (map[string]Topic, error) {
	req := &kafka.DescribeConfigsRequest{}
	for full := range names {
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: full,
			ConfigNames: []string{Cleanup, Retention, RetentionBytes, Timestamps},
		})
	}
	res, err := client.DescribeConfigs(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("asking for the settings of topics: %w", err)
	}
	out := map[string]Topic{}
	for _, r := range res.Resources {
		if r.Error != nil {
			return nil, fmt.Errorf("asking for the settings of topic %s: %w", r.ResourceName, r.Error)
		}
		s := Topic{Retention: Forever, Bytes: -1}
		for _, e := range r.ConfigEntries {
			s.set(e.ConfigName, e.ConfigValue)
		}
		out[names[r.ResourceName]] = s
	}
	return out, nil
}

func (s *Topic) set(name, value string) {
	n, err := strconv.ParseInt(value, 10, 64)
	switch {
	case name == Cleanup:
		s.Compacted = strings.Contains(value, "compact")
	case name == Timestamps:
		s.BrokerTime = value == LogAppendTime
	case err != nil:
	case name == RetentionBytes:
		s.Bytes = n
	case name == Retention && n >= 0:
		s.Retention = time.Duration(min(n, int64(maxRetention/time.Millisecond))) * time.Millisecond
	}
}

// Keeps reports whether a topic that keeps records for a keeps them as long as one for b.
func Keeps(a, b time.Duration) bool { return a == Forever || b != Forever && a >= b }

// Shortest returns the shortest retention of the named topics.
func Shortest(topics map[string]Topic, names []string) time.Duration {
	shortest := Forever
	for _, name := range names {
		if s, ok := topics[name]; ok && !Keeps(s.Retention, shortest) {
			shortest = s.Retention
		}
	}
	return shortest
}

// Check returns what is wrong with the named topics, with one line for each problem: they must keep all
// records for the given time.
func Check(topics map[string]Topic, names []string, kept time.Duration, full func(name string) string) error {
	var errs []error
	for _, name := range names {
		s, ok := topics[name]
		add := func(problem, setting, value string) {
			errs = append(errs, fmt.Errorf("topic %s %s: set its %s to %s", full(name), problem, setting, value))
		}
		switch {
		case !ok:
		case s.Compacted:
			add("is compacted, so that records are deleted before they are read", Cleanup, "delete")
		case s.Bytes >= 0:
			add(fmt.Sprintf("keeps only %d bytes of each partition", s.Bytes), RetentionBytes, "-1")
		case !Keeps(s.Retention, kept):
			want := "-1"
			if kept != Forever {
				want = strconv.FormatInt(kept.Milliseconds(), 10)
			}
			add(fmt.Sprintf("keeps records for %s, which is shorter than tasks are kept", s.Retention), Retention, want)
		}
	}
	return errors.Join(errs...)
}
