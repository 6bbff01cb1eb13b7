package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// Settings of a topic at the broker.
const (
	settingCleanup        = "cleanup.policy"
	settingRetention      = "retention.ms"
	settingRetentionBytes = "retention.bytes"
	settingTimestamps     = "message.timestamp.type"
)

// logAppendTime makes the broker stamp records with its own time. So a wrong clock of a process, or of a
// client, neither makes the broker refuse records nor makes retention delete them early.
const logAppendTime = "LogAppendTime"

// Forever is the retention of a topic whose records are never deleted for their age.
const Forever time.Duration = -1

// TopicSettings is what the broker says about a topic, whose settings may have been changed since it was
// created.
type TopicSettings struct {
	Retention  time.Duration // or Forever
	Bytes      int64         // per partition: the oldest records beyond are deleted; below 0: unlimited
	Compacted  bool          // the broker deletes all but the last record of each key
	BrokerTime bool          // records have the broker's time, not their writer's
}

// Settings asks the broker for the settings of all topics, by name without the prefix.
func (cl *Client) Settings(ctx context.Context) (map[string]TopicSettings, error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	req := &kafka.DescribeConfigsRequest{}
	names := map[string]string{}
	for _, t := range Topics {
		names[cl.full(t.Name)] = t.Name
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: cl.full(t.Name),
			ConfigNames: []string{settingCleanup, settingRetention, settingRetentionBytes, settingTimestamps},
		})
	}
	res, err := cl.kafka.DescribeConfigs(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("asking for the settings of topics: %w", err)
	}
	out := map[string]TopicSettings{}
	for _, r := range res.Resources {
		if r.Error != nil {
			return nil, fmt.Errorf("asking for the settings of topic %s: %w", r.ResourceName, r.Error)
		}
		s := TopicSettings{Retention: Forever, Bytes: -1}
		for _, e := range r.ConfigEntries {
			s.set(e.ConfigName, e.ConfigValue)
		}
		out[names[r.ResourceName]] = s
	}
	return out, nil
}

func (s *TopicSettings) set(name, value string) {
	n, err := strconv.ParseInt(value, 10, 64)
	switch {
	case name == settingCleanup:
		s.Compacted = strings.Contains(value, "compact")
	case name == settingTimestamps:
		s.BrokerTime = value == logAppendTime
	case err != nil:
	case name == settingRetentionBytes:
		s.Bytes = n
	case name == settingRetention && n >= 0:
		s.Retention = time.Duration(min(n, int64(maxRetention/time.Millisecond))) * time.Millisecond
	}
}

// maxRetention is the longest retention that is told apart from [Forever].
const maxRetention = 100 * 365 * 24 * time.Hour

// keeps reports whether a topic that keeps records for a keeps them as long as one for b.
func keeps(a, b time.Duration) bool { return a == Forever || b != Forever && a >= b }

// taskTopics hold what was accepted before a router has assigned it.
var taskTopics = []string{TasksHigh, TasksNormal, TasksLow, TasksParked}

// KeptFor returns for how long a task that waits is kept: the shortest retention of the topics that it may
// wait in, or Forever.
func KeptFor(topics map[string]TopicSettings) time.Duration {
	shortest := Forever
	for _, name := range taskTopics {
		if s, ok := topics[name]; ok && !keeps(s.Retention, shortest) {
			shortest = s.Retention
		}
	}
	return shortest
}

// CheckSettings returns what is wrong with the settings of topics, with one line for each problem: records
// might be deleted before they were read, although the tasks that they hold were accepted.
func (cl *Client) CheckSettings(topics map[string]TopicSettings) error {
	tasks := KeptFor(topics)
	var errs []error
	add := func(topic, problem, setting, value string) {
		errs = append(errs, fmt.Errorf("topic %s %s: set its %s to %s", cl.full(topic), problem, setting, value))
	}
	for _, t := range Topics {
		s, ok := topics[t.Name]
		switch {
		case !ok || t.Name == Checkpoints:
		case s.Compacted:
			add(t.Name, "is compacted, so that records are deleted before they are read", settingCleanup, "delete")
		case s.Bytes >= 0:
			add(t.Name, fmt.Sprintf("keeps only %d bytes of each partition", s.Bytes), settingRetentionBytes, "-1")
		case !keeps(s.Retention, tasks):
			want := "-1"
			if tasks != Forever {
				want = strconv.FormatInt(tasks.Milliseconds(), 10)
			}
			add(t.Name, fmt.Sprintf("keeps records for %s, which is shorter than tasks are kept", s.Retention), settingRetention, want)
		}
	}
	return errors.Join(errs...)
}
