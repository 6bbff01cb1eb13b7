package store

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/internal/metrics"
)

// Config limits what is kept about devices in Redis.
type Config struct {
	Timeout       time.Duration `yaml:"heartbeat_timeout" default:"15s" min:"1s" max:"1h" doc:"A device without a heartbeat for this long is silent and gets no work. The default is three missed heartbeats."`
	ReaderTimeout time.Duration `yaml:"reader_timeout" default:"30s" min:"1s" max:"1h" doc:"A device whose assignments no batcher, or whose batches no worker, has read for this long is unserved and gets no work. It should be longer than a restart of all of them takes."`
	Forget        time.Duration `yaml:"forget_after" default:"1h" min:"1m" max:"720h" doc:"A silent device is removed after this long."`
	MaxDevices    int           `yaml:"max_devices" default:"5000" unit:"devices" min:"1" max:"100000" doc:"Maximum number of known devices. Heartbeats of further devices are refused."`
	LeaseTTL      time.Duration `yaml:"lease_ttl" default:"15s" min:"1s" max:"10m" doc:"A lease of credits that is not renewed for this long expires, and its credits are free again."`
	CancelTTL     time.Duration `yaml:"override_ttl" default:"1h" min:"1m" max:"168h" doc:"How long Redis keeps an override, which is an operator's cancel or reprioritize of a task."`
}

// withDefaults replaces zero values, for programs that do not load a file.
func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// Option configures a Registry, Credits, Rates, Control or Overrides.
type Option func(*options)

type options struct{ metrics *metrics.Metrics }

// conn is what all parts of the store share.
type conn struct {
	rdb     redis.UniversalClient
	metrics *metrics.Metrics
}

// WithMetrics counts in m; the default is to discard metrics.
func WithMetrics(m *metrics.Metrics) Option { return func(o *options) { o.metrics = m } }

func open(rdb redis.UniversalClient, opts []Option) conn {
	var o options
	for _, f := range opts {
		f(&o)
	}
	if o.metrics == nil {
		o.metrics = metrics.New(nil)
	}
	return conn{rdb, o.metrics}
}

// run runs a script and records how long it took.
func (c *conn) run(ctx context.Context, op string, s *redis.Script, keys []string, args ...any) (any, error) {
	began := time.Now()
	v, err := s.Run(ctx, c.rdb, keys, args...).Result()
	c.metrics.Device.RedisSeconds.WithLabelValues(op).Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		c.metrics.Device.RedisErrors.WithLabelValues(op).Inc()
		return nil, err
	}
	return v, nil
}
