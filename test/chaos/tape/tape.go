// Package tape reads topics from the first record on, as they are written, so that it knows what they held
// even after Kafka has deleted it.
package tape

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
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
	moved chan struct{} // closed and replaced with each batch
	err   error         // the first record that cannot be read
}

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
	t := &Tape{client: c, notes: notes{prefix: prefix}, done: make(chan struct{}), next: map[place]int64{}, moved: make(chan struct{})}
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
		t.mu.Lock()
		fetches.EachPartition(t.checkStart)
		for _, r := range fetches.Records() {
			at := place{r.Topic, r.Partition}
			if r.Offset < t.next[at] {
				continue // read before, and again after a broker came back
			}
			t.next[at] = r.Offset + 1
			if r.Attrs.IsControl() {
				continue
			}
			if err := t.notes.take(r); err != nil && t.err == nil {
				t.err = fmt.Errorf("reading %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
			}
		}
		close(t.moved)
		t.moved = make(chan struct{})
		t.mu.Unlock()
	}
}

// checkStart notes if Kafka has deleted records that were not read. Then nothing can be said about the run.
func (t *Tape) checkStart(p kgo.FetchTopicPartition) {
	if next := t.next[place{p.Topic, p.Partition}]; next < p.LogStartOffset && len(p.Records) > 0 && t.err == nil {
		t.err = fmt.Errorf("reading %s/%d: Kafka deleted the records %d to %d before the test read them: this machine is too slow for such a retention", p.Topic, p.Partition, next, p.LogStartOffset-1)
	}
}

// Forget reads a topic that was recreated from its first record on.
func (t *Tape) Forget(topic string) {
	t.client.PurgeTopicsFromConsuming(topic)
	t.mu.Lock()
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
