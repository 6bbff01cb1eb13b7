package stream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// layoutInterval is how often the layout is read without a reason.
const layoutInterval = 2 * time.Second

// layouts remembers which partitions the topics have and who leads them. It
// reads what the transport knows, which asks the broker every few seconds.
type layouts struct {
	l      *Log
	kicked chan struct{}

	mu      sync.RWMutex
	topics  map[string][]int32 // by name without prefix: the leader of each partition, -1 when there is none
	changed chan struct{}      // closed, and made anew, at each refresh
}

func newLayouts(l *Log) *layouts {
	return &layouts{l: l, kicked: make(chan struct{}, 1), topics: map[string][]int32{}, changed: make(chan struct{})}
}

// kick asks for a refresh soon: somebody met an error that a new layout may cure.
func (y *layouts) kick() {
	select {
	case y.kicked <- struct{}{}:
	default:
	}
}

func (y *layouts) run(ctx context.Context) {
	ticker := time.NewTicker(layoutInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-y.kicked:
			// A broker that is away makes many of them; one in a while is enough.
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
		y.refresh(ctx)
	}
}

func (y *layouts) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, y.l.cfg.RequestTimeout)
	defer cancel()
	res, err := y.l.client.Metadata(ctx, &kafka.MetadataRequest{Topics: y.l.transport.MetadataTopics})
	if err != nil {
		return // keep what is known; whoever sends will see the error
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for i, t := range res.Topics {
		if t.Error != nil || len(t.Partitions) == 0 || i >= len(Topics) {
			continue
		}
		leaders := make([]int32, len(t.Partitions))
		whole := true
		for _, p := range t.Partitions {
			if p.ID < 0 || p.ID >= len(leaders) {
				whole = false
				break
			}
			leaders[p.ID] = int32(p.Leader.ID)
			if p.Leader.Host == "" {
				leaders[p.ID] = -1
			}
		}
		// Fewer partitions than before are the answer of a broker that has not
		// heard of the new ones.
		if name := Topics[i].Name; whole && len(leaders) >= len(y.topics[name]) && !slices.Equal(leaders, y.topics[name]) {
			y.topics[name] = leaders
		}
	}
	close(y.changed)
	y.changed = make(chan struct{})
}

// leaders returns the leader of each partition; nil when the topic is unknown yet.
func (y *layouts) leaders(topic string) []int32 {
	y.mu.RLock()
	defer y.mu.RUnlock()
	return y.topics[topic]
}

// partitions returns how many partitions the topic has, waiting until it has some.
func (y *layouts) partitions(ctx context.Context, topic string) (int, error) {
	for {
		y.mu.RLock()
		n, changed := len(y.topics[topic]), y.changed
		y.mu.RUnlock()
		if n > 0 {
			return n, nil
		}
		y.kick()
		select {
		case <-changed:
		case <-y.l.closed:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, fmt.Errorf("looking up topic %s: %w; run `batchyard topics create` if it is missing", y.l.full(topic), ctx.Err())
		}
	}
}
