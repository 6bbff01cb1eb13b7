package stream

import (
	"context"
	"time"

	"github.com/batchyard/batchyard/stream/internal/settings"
)

// TopicSettings is what the broker says about a topic, whose settings may have been changed since it was
// created.
type TopicSettings = settings.Topic

// Forever is the retention of a topic whose records are never deleted for their age.
const Forever = settings.Forever

// Settings asks the broker for the settings of all topics, by name without the prefix.
func (cl *Client) Settings(ctx context.Context) (map[string]TopicSettings, error) {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.RequestTimeout)
	defer cancel()
	names := map[string]string{}
	for _, t := range Topics {
		names[cl.full(t.Name)] = t.Name
	}
	return settings.Ask(ctx, cl.kafka, names)
}

// taskTopics hold what was accepted before a router has assigned it.
var taskTopics = []string{TasksHigh, TasksNormal, TasksLow, TasksParked}

// KeptFor returns for how long a task that waits is kept: the shortest retention of the topics that it may
// wait in, or Forever.
func KeptFor(topics map[string]TopicSettings) time.Duration {
	return settings.Shortest(topics, taskTopics)
}

// CheckSettings returns what is wrong with the settings of topics, with one line for each problem: records
// might be deleted before they were read, although the tasks that they hold were accepted.
func (cl *Client) CheckSettings(topics map[string]TopicSettings) error {
	names := make([]string, 0, len(Topics))
	for _, t := range Topics {
		if t.Name != Checkpoints {
			names = append(names, t.Name)
		}
	}
	return settings.Check(topics, names, KeptFor(topics), cl.full)
}
