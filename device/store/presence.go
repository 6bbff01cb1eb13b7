package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/device"
)

// Presence says which devices are served: a batcher reads their assignments, and a worker their batches.
// Routers give no work to a device that is not: it would wait in Kafka, bound to this device, while its
// credits expire and are granted again and again.
//
// Stages report the partitions of their topic of which they have read everything that there was; a device
// belongs to the partition of its id. A report holds for devices.reader_timeout, which is longer than a
// restart takes, by Redis' clock. Nothing is deleted when a stage stops, so a restart changes nothing. If
// Redis loses the reports, the next ones come within [ReportInterval].
//
//	          first report                 no report for ReaderTimeout
//	(unserved) ───────────▶ served ────────────────────────────────────▶ (unserved)
type Presence struct {
	conn
	cfg         Config
	prefix      string
	topics      []string
	partitionOf func(topic, key string) int
}

// NewPresence returns the presence of readers of the topics, all of which a device needs. partitionOf says
// which partition holds the records of a key; below 0: it is not known yet.
func NewPresence(rdb redis.UniversalClient, cfg Config, prefix string, topics []string, partitionOf func(topic, key string) int, opts ...Option) *Presence {
	return &Presence{conn: open(rdb, opts), cfg: cfg.withDefaults(), prefix: prefix, topics: topics, partitionOf: partitionOf}
}

func (p *Presence) key(topic string) string { return p.prefix + "readers:" + topic }

// readScript records that partitions are read.
//
//	KEYS[1]  hash partition → when it was reported last, in ms of Redis' clock
//	ARGV[1]  milliseconds after which the hash expires without a report
//	ARGV     then the partitions
var readScript = redis.NewScript(`
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
for i = 2, #ARGV do redis.call('HSET', KEYS[1], ARGV[i], now) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return #ARGV
`)

// Report records that the partitions of a topic are read.
func (p *Presence) Report(ctx context.Context, topic string, partitions []int) error {
	args := make([]any, 0, 1+len(partitions))
	args = append(args, 10*p.cfg.ReaderTimeout.Milliseconds())
	for _, n := range partitions {
		args = append(args, n)
	}
	if _, err := p.run(ctx, "readers", readScript, []string{p.key(topic)}, args...); err != nil {
		return fmt.Errorf("reporting to Redis that %d partitions of %s are read: %w", len(partitions), topic, err)
	}
	return nil
}

// Mark sets Unserved of the devices that are not served.
func (p *Presence) Mark(ctx context.Context, devices []device.Device) error {
	began := time.Now()
	pipe := p.rdb.Pipeline()
	reports := make([]*redis.MapStringStringCmd, len(p.topics))
	for i, topic := range p.topics {
		reports[i] = pipe.HGetAll(ctx, p.key(topic))
	}
	clock := pipe.Time(ctx)
	_, err := pipe.Exec(ctx)
	p.metrics.Device.RedisSeconds.WithLabelValues("presence").Observe(time.Since(began).Seconds())
	if err != nil {
		p.metrics.Device.RedisErrors.WithLabelValues("presence").Inc()
		return fmt.Errorf("reading from Redis which devices are served: %w", err)
	}
	unserved := 0
	for i := range devices {
		d := &devices[i]
		d.Unserved = false
		for k, topic := range p.topics {
			n := p.partitionOf(topic, d.ID)
			if n >= 0 && !p.isRead(reports[k].Val()[strconv.Itoa(n)], clock.Val()) {
				d.Unserved = true
			}
		}
		if d.Unserved {
			unserved++
		}
	}
	p.metrics.Device.Unserved.Set(float64(unserved))
	return nil
}

// Read is how far a topic is read, as of the last report about the partition of a key.
type Read struct {
	Until time.Time // what was written before has been read; zero: it is not known to be read
	Now   bool      // a stage that reads it is there, and keeps up
}

// readLag is how long before a report a record was written, at most, that has not been read.
const readLag = 10 * time.Second

// Read says how far the partition of a key is read.
func (p *Presence) Read(ctx context.Context, topic, key string) (Read, error) {
	n := p.partitionOf(topic, key)
	if n < 0 {
		return Read{}, nil // no records are known either
	}
	pipe := p.rdb.Pipeline()
	report, clock := pipe.HGet(ctx, p.key(topic), strconv.Itoa(n)), pipe.Time(ctx)
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		p.metrics.Device.RedisErrors.WithLabelValues("presence").Inc()
		return Read{}, fmt.Errorf("reading from Redis how far %s is read: %w", topic, err)
	}
	var ms int64
	_ = json.Unmarshal([]byte(report.Val()), &ms) // 0: there is no report, or one of another kind
	if ms == 0 {
		return Read{}, nil
	}
	return Read{Until: time.UnixMilli(ms).Add(-readLag), Now: p.isRead(report.Val(), clock.Val())}, nil
}

// isRead judges one report. One from the future does not count: Redis' clock was set back, and stages that
// are there report again soon.
func (p *Presence) isRead(reported string, now time.Time) bool {
	var ms int64
	if json.Unmarshal([]byte(reported), &ms) != nil {
		return false
	}
	age := now.Sub(time.UnixMilli(ms))
	return age <= p.cfg.ReaderTimeout && age >= -p.cfg.ReaderTimeout
}

// ReportInterval is how often a stage reports what it reads.
func (p *Presence) ReportInterval() time.Duration {
	return min(3*time.Second, p.cfg.ReaderTimeout/5)
}

// Reader reports what one stage reads of one topic. A nil Reader reports nothing.
type Reader struct {
	presence *Presence
	topic    string
	log      *slog.Logger
	wake     chan struct{}

	mu         sync.Mutex
	partitions []int
}

// Reader returns the reporter of a topic; call Run to start it.
func (p *Presence) Reader(topic string, log *slog.Logger) *Reader {
	if p == nil {
		return nil
	}
	return &Reader{presence: p, topic: topic, log: log, wake: make(chan struct{}, 1)}
}

// Interval is how often Current should be called.
func (r *Reader) Interval() time.Duration {
	if r == nil {
		return time.Hour
	}
	return r.presence.ReportInterval()
}

// Current makes Run report the partitions. It does not block.
func (r *Reader) Current(partitions []int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.partitions = partitions
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends. What Redis does not take is reported with the next call of Current.
func (r *Reader) Run(ctx context.Context) {
	if r == nil {
		return
	}
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		r.mu.Lock()
		partitions := r.partitions
		r.mu.Unlock()
		err := r.presence.Report(ctx, r.topic, partitions)
		if err != nil && ctx.Err() == nil && !failing {
			r.log.Warn("cannot report in Redis what is read: without a report from batchers and workers, devices get no work after devices.reader_timeout", "topic", r.topic, "error", err)
		}
		failing = err != nil
	}
}
