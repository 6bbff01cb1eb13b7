package stream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// layoutInterval is how often the layout is refreshed when nothing asks for it.
const layoutInterval = 2 * time.Second

// layouts caches the partitions of each topic and their leaders. It reads the transport's
// metadata, which the transport refreshes from a broker every few seconds.
type layouts struct {
	cl        *Client
	refreshes chan struct{}

	mu      sync.RWMutex
	topics  map[string][]int32 // by name without prefix: the leader of each partition, -1 without one
	changed chan struct{}      // closed and replaced at each refresh
}

func newLayouts(cl *Client) *layouts {
	return &layouts{cl: cl, refreshes: make(chan struct{}, 1), topics: map[string][]int32{}, changed: make(chan struct{})}
}

// refreshSoon asks for a refresh, after an error that a new layout may fix.
func (y *layouts) refreshSoon() {
	select {
	case y.refreshes <- struct{}{}:
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
		case <-y.refreshes:
			// An unreachable broker causes many of these; limit the rate.
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
	ctx, cancel := context.WithTimeout(ctx, y.cl.cfg.RequestTimeout)
	defer cancel()
	res, err := y.cl.kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: y.cl.transport.MetadataTopics})
	if err != nil {
		return // keep the old layout; the next send will see the error
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
		// Topics never lose partitions: fewer than before is an answer from a broker that has
		// not heard of the new ones yet.
		if name := Topics[i].Name; whole && len(leaders) >= len(y.topics[name]) && !slices.Equal(leaders, y.topics[name]) {
			y.topics[name] = leaders
		}
	}
	close(y.changed)
	y.changed = make(chan struct{})
}

// leaders returns the leader of each partition; nil while the topic is not known yet.
func (y *layouts) leaders(topic string) []int32 {
	y.mu.RLock()
	defer y.mu.RUnlock()
	return y.topics[topic]
}

// partitions returns how many partitions the topic has, and waits until it has some.
func (y *layouts) partitions(ctx context.Context, topic string) (int, error) {
	for {
		y.mu.RLock()
		n, changed := len(y.topics[topic]), y.changed
		y.mu.RUnlock()
		if n > 0 {
			return n, nil
		}
		y.refreshSoon()
		select {
		case <-changed:
		case <-y.cl.closed:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, fmt.Errorf("looking up topic %s: %w; run `batchyard topics create` if it is missing", y.cl.full(topic), ctx.Err())
		}
	}
}
