// Package layout caches what topics a cluster has: their partitions, the partitions' leaders, and the
// topics' ids.
package layout

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/topicid"
)

// interval is how often the layout is refreshed when nothing asks for it.
const interval = 2 * time.Second

// Name is a topic's name without and with the prefix.
type Name struct{ Short, Full string }

// Cluster is what a layout is read from.
type Cluster struct {
	Kafka     *kafka.Client
	Transport *kafka.Transport // its MetadataTopics are the full names of Topics
	Addr      net.Addr
	Topics    []Name
	Timeout   time.Duration // of a request
	Closed    chan struct{} // waiting ends with ErrClosed
	ErrClosed error
}

// Layouts caches the partitions of each topic and their leaders, and the topics' ids. It reads the
// transport's metadata, which the transport refreshes from a broker every few seconds.
type Layouts struct {
	cl        Cluster
	refreshes chan struct{}

	mu      sync.RWMutex
	topics  map[string][]int32 // by name without prefix: the leader of each partition, -1 without one
	ids     map[string]string  // by name without prefix: missing while it is unknown
	shrunk  map[string]int     // how many partitions a recreated topic has, until the layout agrees
	changed chan struct{}      // closed and replaced at each refresh
}

// New returns an empty cache. Run keeps it up to date.
func New(cl Cluster) *Layouts {
	return &Layouts{cl: cl, refreshes: make(chan struct{}, 1), topics: map[string][]int32{}, ids: map[string]string{}, shrunk: map[string]int{}, changed: make(chan struct{})}
}

// RefreshSoon asks for a refresh, after an error that a new layout may fix.
func (y *Layouts) RefreshSoon() {
	select {
	case y.refreshes <- struct{}{}:
	default:
	}
}

// Run refreshes the layout until ctx ends.
func (y *Layouts) Run(ctx context.Context) {
	ticker := time.NewTicker(interval)
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
		y.Refresh(ctx)
		y.RefreshIDs(ctx)
	}
}

// RefreshIDs asks a broker for the ids of all topics. A topic that has another id than before was
// recreated, and may have fewer partitions.
func (y *Layouts) RefreshIDs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, y.cl.Timeout)
	defer cancel()
	got, err := topicid.Ask(ctx, y.cl.Transport, y.cl.Addr, y.cl.Transport.MetadataTopics)
	if err != nil {
		return // keep the old ones
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, t := range y.cl.Topics {
		name := t.Short
		id := got.IDs[t.Full]
		if id == "" {
			continue
		}
		_, waits := y.shrunk[name]
		if old := y.ids[name]; waits || (old != "" && old != id) {
			y.shrunk[name] = got.Partitions[t.Full]
			y.RefreshSoon()
		}
		y.ids[name] = id
	}
}

// ID returns the topic's id, at most a few seconds old; empty if the broker has no ids.
func (y *Layouts) ID(topic string) string {
	y.mu.RLock()
	defer y.mu.RUnlock()
	return y.ids[topic]
}

// Refresh reads the partitions that the transport knows.
func (y *Layouts) Refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, y.cl.Timeout)
	defer cancel()
	res, err := y.cl.Kafka.Metadata(ctx, &kafka.MetadataRequest{Topics: y.cl.Transport.MetadataTopics})
	if err != nil {
		return // keep the old layout; the next send will see the error
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	for i, t := range res.Topics {
		if t.Error != nil || len(t.Partitions) == 0 || i >= len(y.cl.Topics) {
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
		// Topics never lose partitions, unless they are recreated: fewer than before is an answer from
		// a broker that has not heard of the new ones yet.
		name := y.cl.Topics[i].Short
		recreated := y.shrunk[name] == len(leaders)
		if whole && (recreated || len(leaders) >= len(y.topics[name])) && !slices.Equal(leaders, y.topics[name]) {
			y.topics[name] = leaders
		}
		if recreated {
			delete(y.shrunk, name)
		}
	}
	close(y.changed)
	y.changed = make(chan struct{})
}

// FreshID returns the topic's id, and asks a broker if it is unknown.
func (y *Layouts) FreshID(ctx context.Context, topic string) string {
	if y.ID(topic) == "" {
		y.RefreshIDs(ctx)
	}
	return y.ID(topic)
}

// Leaders returns the leader of each partition; nil while the topic is not known yet.
func (y *Layouts) Leaders(topic string) []int32 {
	y.mu.RLock()
	defer y.mu.RUnlock()
	return y.topics[topic]
}

// Partitions returns how many partitions the topic has, and waits until it has some.
func (y *Layouts) Partitions(ctx context.Context, topic string) (int, error) {
	for {
		y.mu.RLock()
		n, changed := len(y.topics[topic]), y.changed
		y.mu.RUnlock()
		if n > 0 {
			return n, nil
		}
		y.RefreshSoon()
		select {
		case <-changed:
		case <-y.cl.Closed:
			return 0, y.cl.ErrClosed
		case <-ctx.Done():
			return 0, fmt.Errorf("looking up topic %s: %w; run `batchyard topics create` if it is missing", y.full(topic), ctx.Err())
		}
	}
}

func (y *Layouts) full(topic string) string {
	for _, t := range y.cl.Topics {
		if t.Short == topic {
			return t.Full
		}
	}
	return topic
}

// Writable returns the names of the topics that can be written to, every partition having a leader.
func Writable(res *kafka.MetadataResponse) map[string]bool {
	names := map[string]bool{}
	for _, t := range res.Topics {
		leaderless := func(p kafka.Partition) bool { return p.Leader.Host == "" }
		if t.Error == nil && len(t.Partitions) > 0 && !slices.ContainsFunc(t.Partitions, leaderless) {
			names[t.Name] = true
		}
	}
	return names
}
