package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/unreachable"
)

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

// topologyInterval is how often a client of a Redis Cluster asks which nodes are masters when no
// command has failed.
const topologyInterval = 10 * time.Second

// Redis is a connection to one Redis server or to a Redis Cluster. It follows the cluster to new
// masters, logs what it waits for while a node does not answer, and notices when Redis evicts keys.
type Redis struct {
	redis.UniversalClient
	monitor *monitor
	stop    context.CancelFunc
	running sync.WaitGroup
}

// OpenRedis connects to Redis and pings it. The error says what to check. logger and m may be nil.
// The caller closes the connection.
func OpenRedis(ctx context.Context, cfg RedisConfig, logger *slog.Logger, m *metrics.Metrics) (*Redis, error) {
	return openRedis(ctx, cfg, topologyInterval, logger, m)
}

func openRedis(ctx context.Context, cfg RedisConfig, interval time.Duration, logger *slog.Logger, m *metrics.Metrics) (*Redis, error) {
	o, err := cfg.options()
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if m == nil {
		m = metrics.New(nil)
	}
	silenceLibrary()
	var rdb redis.UniversalClient
	mon := &monitor{logger: logger.With("part", "redis"), metrics: &m.Device, addr: cfg.Addr, timeout: o.ReadTimeout, failed: make(chan struct{}, 1)}
	if len(o.Addrs) > 1 {
		co := o.Cluster()
		co.ClusterStateReloadInterval = interval
		c := redis.NewClusterClient(co)
		mon.reload = c.ReloadState
		c.OnNewNode(func(node *redis.Client) { node.AddHook(failureHook{mon.nodeFailed}) })
		rdb = c
	} else {
		c := redis.NewClient(o.Simple())
		c.AddHook(failureHook{mon.nodeFailed})
		rdb = c
	}
	if err := rdb.Ping(ctx).Err(); err != nil {
		return nil, errors.Join(&unreachable.Error{Service: "Redis", Addr: cfg.Addr, Setting: "redis.addr", Err: err}, rdb.Close())
	}
	r := &Redis{UniversalClient: rdb, monitor: mon}
	mon.rdb = rdb
	mon.checkEviction(ctx)
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.stop = stop
	r.running.Go(func() { mon.run(watching) })
	return r, nil
}

// options are those of the library.
func (cfg RedisConfig) options() (*redis.UniversalOptions, error) {
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
	return o, nil
}

// Note returns what an operator should know although Redis answers; empty: nothing.
func (r *Redis) Note() string { return r.monitor.note() }

// Close closes all connections.
func (r *Redis) Close() error {
	r.stop()
	err := r.UniversalClient.Close()
	r.running.Wait()
	return err
}

// silenceLibrary keeps the library from writing to standard error: problems come back as errors, and
// the caller reports them.
var silenceLibrary = sync.OnceFunc(func() { redis.SetLogger(discardLogger{}) })

type discardLogger struct{}

func (discardLogger) Printf(context.Context, string, ...any) {}
