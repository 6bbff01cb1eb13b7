// Package tape reads topics from the first record on, as they are written, so that it knows what they held
// even after Kafka has deleted it.
package tape

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/test/chaos/check"
)

// Tape reads topics.
type Tape struct {
	client *kgo.Client
	done   chan struct{}

	mu    sync.Mutex
	notes notes
	next  map[place]int64
	ids   map[string]topicID // of the topics that are read
	gone  map[topicID]bool   // topics that were recreated
	moved chan struct{}      // closed and replaced with each batch
	err   error              // the first record that cannot be read
}

type topicID = [16]byte

type place struct {
	topic     string
	partition int32
}

// Start reads topics until Close. prefix is that of their names.
func Start(ctx context.Context, brokers, topics []string, prefix string) (*Tape, error) {
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ClientID("tape"), kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), // the last record may be the end of a transaction
		kgo.FetchMaxBytes(32<<20), kgo.BrokerMaxReadBytes(64<<20), kgo.FetchMaxPartitionBytes(16<<20),
		kgo.FetchMaxWait(250*time.Millisecond), kgo.MetadataMaxAge(time.Second), kgo.MetadataMinAge(250*time.Millisecond)) // topics may get more partitions
	if err != nil {
		return nil, fmt.Errorf("reading topics: %w", err)
	}
	t := &Tape{client: c, notes: notes{prefix: prefix}, done: make(chan struct{}), next: map[place]int64{}, ids: map[string]topicID{}, gone: map[topicID]bool{}, moved: make(chan struct{})}
	go t.run(context.WithoutCancel(ctx))
	return t, nil
}

func (t *Tape) run(ctx context.Context) {
	defer close(t.done)
	for {
		fetches := t.client.PollFetches(ctx)
		if fetches.IsClientClosed() {
			return
		}
		for _, topic := range t.take(fetches) {
			t.client.PurgeTopicsFromConsuming(topic)
			t.client.AddConsumeTopics(topic)
		}
	}
}

// take takes what was read, and returns the topics that have to be joined again. The client never follows a
// topic to its next id, and a broker of a cluster may still tell it that of the old topic after [Tape.Forget].
func (t *Tape) take(fetches kgo.Fetches) (rejoin []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fetch := range fetches {
		for _, f := range fetch.Topics {
			if slices.ContainsFunc(f.Partitions, isOfUnknownTopic) {
				rejoin = append(rejoin, f.Topic)
			}
			if t.gone[f.TopicID] {
				continue
			}
			f.EachPartition(func(p kgo.FetchPartition) { t.checkStart(f.Topic, p) })
			f.EachRecord(func(r *kgo.Record) {
				t.ids[f.Topic] = f.TopicID
				t.note(r)
			})
		}
	}
	close(t.moved)
	t.moved = make(chan struct{})
	return rejoin
}

func isOfUnknownTopic(p kgo.FetchPartition) bool { return errors.Is(p.Err, kerr.UnknownTopicID) }

func (t *Tape) note(r *kgo.Record) {
	at := place{r.Topic, r.Partition}
	if r.Offset < t.next[at] {
		return // read before, and again after a broker came back
	}
	t.next[at] = r.Offset + 1
	if r.Attrs.IsControl() {
		return
	}
	if err := t.notes.take(r); err != nil && t.err == nil {
		t.err = fmt.Errorf("reading %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
	}
}

// checkStart notes if Kafka has deleted records that were not read. Then nothing can be said about the run.
func (t *Tape) checkStart(topic string, p kgo.FetchPartition) {
	if next := t.next[place{topic, p.Partition}]; next < p.LogStartOffset && len(p.Records) > 0 && t.err == nil {
		t.err = fmt.Errorf("reading %s/%d: Kafka deleted the records %d to %d before the test read them: this machine is too slow for such a retention", topic, p.Partition, next, p.LogStartOffset-1)
	}
}

// Forget reads a topic that was recreated from its first record on.
func (t *Tape) Forget(topic string) {
	t.client.PurgeTopicsFromConsuming(topic)
	t.mu.Lock()
	if id, known := t.ids[topic]; known {
		t.gone[id] = true
	}
	for at := range t.next {
		if at.topic == topic {
			delete(t.next, at)
		}
	}
	t.mu.Unlock()
	t.client.AddConsumeTopics(topic)
}

// Await waits until everything has been read that topics hold now.
func (t *Tape) Await(ctx context.Context, adm *kadm.Client, topics ...string) error {
	ends, err := adm.ListCommittedOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("asking Kafka for the ends of topics: %w", err)
	}
	starts, err := adm.ListStartOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("asking Kafka for the beginnings of topics: %w", err)
	}
	for {
		t.mu.Lock()
		behind, moved, err := "", t.moved, t.err
		ends.Each(func(o kadm.ListedOffset) {
			start, _ := starts.Lookup(o.Topic, o.Partition)
			if n := t.next[place{o.Topic, o.Partition}]; n < o.Offset && start.Offset < o.Offset {
				behind = fmt.Sprintf("%s/%d: %d of %d", o.Topic, o.Partition, n, o.Offset)
			}
		})
		t.mu.Unlock()
		if err != nil || behind == "" {
			return err
		}
		select {
		case <-moved:
		case <-t.done:
			return errors.New("reading topics: the tape is closed")
		case <-ctx.Done():
			return fmt.Errorf("reading topics: at %s: %w", behind, ctx.Err())
		}
	}
}

// Into adds to a history what was ever in the topics.
func (t *Tape) Into(h *check.History) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes.into(h)
}

// Close stops reading.
func (t *Tape) Close() {
	t.client.Close()
	<-t.done
}
