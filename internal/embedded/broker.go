package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

const (
	brokerDir = "broker"

	defaultPartitions      = 8
	defaultMaxMessageBytes = 4 << 20

	// Allows short consumer-group sessions, so that the group notices quickly when
	// a member is killed.
	minSessionTimeout = 100 * time.Millisecond
)

// BrokerOptions are the options of StartBroker. The zero value is usable.
type BrokerOptions struct {
	// Dir holds the data; empty means a temporary directory.
	Dir string
	// Logger may be nil.
	Logger *slog.Logger
	// Partitions is the partition count of a topic created without one; 0 means 8.
	Partitions int
	// MaxMessageBytes limits a record batch, in topics that don't set
	// max.message.bytes themselves; 0 means 4 MiB.
	MaxMessageBytes int64
}

// Broker is a single Kafka-protocol node inside this process.
type Broker struct {
	log     *slog.Logger
	opts    BrokerOptions
	dir     string
	home    *home // nil when a Stack owns the directory
	port    int
	mu      sync.Mutex
	cluster *kfake.Cluster // nil while stopped
	closed  bool
}

// StartBroker starts just a broker. As on a production cluster, topics are not
// created on first use.
func StartBroker(ctx context.Context, o BrokerOptions) (*Broker, error) {
	log := loggerOr(o.Logger)
	h, err := openHome(ctx, o.Dir, log)
	if err != nil {
		return nil, err
	}
	b, err := startBrokerIn(ctx, h, o)
	if err != nil {
		_ = h.close()
		return nil, err
	}
	b.home = h
	return b, nil
}

// startBrokerIn starts a broker in a directory that the caller has locked.
func startBrokerIn(ctx context.Context, h *home, o BrokerOptions) (*Broker, error) {
	if o.Partitions == 0 {
		o.Partitions = defaultPartitions
	}
	if o.MaxMessageBytes == 0 {
		o.MaxMessageBytes = defaultMaxMessageBytes
	}
	b := &Broker{log: loggerOr(o.Logger), opts: o, dir: filepath.Join(h.path, brokerDir)}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating broker directory %s: %w", b.dir, err)
	}
	l, err := listen(savedPort(b.dir))
	if err != nil {
		return nil, err
	}
	b.port = portOf(l)
	if err := savePort(b.dir, b.port); err != nil {
		_ = l.Close()
		return nil, err
	}
	return b, b.serve(ctx, l)
}

// serve loads the data on disk and answers on l. The caller holds mu, or no one
// else has the Broker yet.
func (b *Broker) serve(ctx context.Context, l net.Listener) error {
	if err := ctx.Err(); err != nil {
		_ = l.Close()
		return fmt.Errorf("starting the embedded broker: %w", err)
	}
	for _, name := range []string{"groups.log", "pids.log"} {
		if err := dropTornTail(filepath.Join(b.dir, name), b.log); err != nil {
			_ = l.Close()
			return err
		}
	}
	guarded := newGuardedListener(l)
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID("batchyard-embedded"),
		kfake.DataDir(b.dir),
		kfake.DefaultNumPartitions(b.opts.Partitions),
		kfake.GroupMinSessionTimeout(minSessionTimeout),
		kfake.BrokerConfigs(map[string]string{
			"default.replication.factor": "1",
			"message.max.bytes":          strconv.FormatInt(b.opts.MaxMessageBytes, 10),
		}),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return guarded, nil }),
		kfake.WithLogger(kfakeLogger{b.log}),
	)
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("starting the embedded broker in %s: %w", b.dir, err)
	}
	b.cluster = cluster
	return nil
}

// Addr is the broker's host:port, which never changes.
func (b *Broker) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)) }

// Stop takes the broker off the network: clients are refused until Restart.
// Everything it acknowledged, group membership included, stays on disk.
func (b *Broker) Stop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop()
	return nil
}

func (b *Broker) stop() {
	if b.cluster != nil {
		b.cluster.Close()
		b.cluster = nil
	}
}

// Restart stops the broker if it is running and starts it again on the same address.
func (b *Broker) Restart(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("restarting the embedded broker in %s: already closed", b.dir)
	}
	b.stop()
	l, err := listenOn(b.port)
	if err != nil {
		return fmt.Errorf("restarting the embedded broker: %w", err)
	}
	return b.serve(ctx, l)
}

// Close stops the broker and removes its directory if that is temporary. Calling
// it again does nothing.
func (b *Broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	b.stop()
	if b.home == nil {
		return nil
	}
	return b.home.close()
}

// kfakeLogger forwards kfake's log. Its info messages are for people debugging a
// client, so they become debug messages here.
type kfakeLogger struct{ log *slog.Logger }

func (l kfakeLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	case kfake.LogLevelDebug:
		return
	default:
	}
	if l.log.Enabled(context.Background(), to) {
		l.log.Log(context.Background(), to, fmt.Sprintf(format, args...), "part", "broker")
	}
}

func loggerOr(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
