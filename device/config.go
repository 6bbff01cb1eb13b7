package device

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/unreachable"
)

// Config limits what is kept about devices in Redis.
type Config struct {
	Timeout    time.Duration `yaml:"heartbeat_timeout" default:"15s" min:"1s" max:"1h" doc:"A device without a heartbeat for this long is silent and gets no work. The default is three missed heartbeats."`
	Forget     time.Duration `yaml:"forget_after" default:"1h" min:"1m" max:"720h" doc:"A silent device is removed after this long."`
	MaxDevices int           `yaml:"max_devices" default:"5000" unit:"devices" min:"1" max:"100000" doc:"Maximum number of known devices. Heartbeats of further devices are refused."`
	LeaseTTL   time.Duration `yaml:"lease_ttl" default:"15s" min:"1s" max:"10m" doc:"A lease of credits that is not renewed for this long expires, and its credits are free again."`
	CancelTTL  time.Duration `yaml:"override_ttl" default:"1h" min:"1m" max:"168h" doc:"How long Redis keeps an override, which is an operator's cancel or reprioritize of a task."`
}

// withDefaults replaces zero values, for programs that do not load a file.
func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// RedisConfig says where Redis is.
type RedisConfig struct {
	Addr        string        `yaml:"addr" default:"127.0.0.1:6379" doc:"Address of Redis as host:port. Several addresses, separated by commas, mean a Redis Cluster."`
	Prefix      string        `yaml:"prefix" default:"batchyard:" doc:"Prefix of every key, so that several installations can share one Redis."`
	User        string        `yaml:"user" doc:"User name, if Redis requires one."`
	PasswordEnv string        `yaml:"password_env" doc:"Environment variable that holds the password, if Redis requires one."`
	DB          int           `yaml:"db" default:"0" min:"0" max:"15" doc:"Number of the database. A Redis Cluster has only 0."`
	TLS         bool          `yaml:"tls" default:"false" doc:"Use TLS and verify the certificate against the system's authorities."`
	Timeout     time.Duration `yaml:"timeout" default:"3s" min:"10ms" max:"1m" doc:"Timeout for connecting to Redis, and for one command."`
}

// OpenRedis connects to Redis and pings it. The error says what to check.
func OpenRedis(ctx context.Context, cfg RedisConfig) (redis.UniversalClient, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 3*time.Second)
	o := &redis.UniversalOptions{
		DB: cfg.DB, Username: cfg.User, ClientName: "batchyard",
		DialTimeout: cfg.Timeout, ReadTimeout: cfg.Timeout, WriteTimeout: cfg.Timeout,
		ContextTimeoutEnabled: true,
		DialerRetries:         1, // callers know better whether and when to retry
	}
	for a := range strings.SplitSeq(cfg.Addr, ",") {
		if a = strings.TrimSpace(a); a != "" {
			o.Addrs = append(o.Addrs, a)
		}
	}
	if len(o.Addrs) == 0 {
		return nil, errors.New("connecting to Redis: redis.addr is empty; set it to host:port")
	}
	if cfg.PasswordEnv != "" {
		if o.Password = os.Getenv(cfg.PasswordEnv); o.Password == "" {
			return nil, fmt.Errorf("connecting to Redis: the environment variable %s (redis.password_env) is empty; set it to the password", cfg.PasswordEnv)
		}
	}
	if cfg.TLS {
		host, _, err := net.SplitHostPort(o.Addrs[0])
		if err != nil {
			return nil, fmt.Errorf("connecting to Redis: %w; set redis.addr to host:port", err)
		}
		o.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	}
	hush()
	rdb := redis.NewUniversalClient(o)
	if err := rdb.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(&unreachable.Error{Service: "Redis", Addr: cfg.Addr, Setting: "redis.addr", Err: err}, rdb.Close())
	}
	return rdb, nil
}

// hush keeps the library from writing to standard error: problems come back as errors, and
// the caller reports them.
var hush = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Option configures a Registry, Credits, Rates, Control or Cancels.
type Option func(*options)

type options struct{ metrics *metrics.Metrics }

// WithMetrics counts in m; the default is to discard metrics.
func WithMetrics(m *metrics.Metrics) Option { return func(o *options) { o.metrics = m } }

func apply(opts []Option) options {
	var o options
	for _, f := range opts {
		f(&o)
	}
	if o.metrics == nil {
		o.metrics = metrics.New(nil)
	}
	return o
}

// run runs a script and records how long it took.
func run(ctx context.Context, rdb redis.UniversalClient, m *metrics.Metrics, op string, s *redis.Script, keys []string, args ...any) (any, error) {
	began := time.Now()
	v, err := s.Run(ctx, rdb, keys, args...).Result()
	m.Device.RedisSeconds.WithLabelValues(op).Observe(time.Since(began).Seconds())
	if err != nil && !errors.Is(err, redis.Nil) {
		m.Device.RedisErrors.WithLabelValues(op).Inc()
		return nil, err
	}
	return v, nil
}
