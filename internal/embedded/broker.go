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

	// A second member of a group joins within its heartbeat; short sessions are
	// allowed so that a killed member is noticed soon.
	minSessionTimeout = 100 * time.Millisecond
)

// BrokerOptions are the options of StartBroker. The zero value is usable.
type BrokerOptions struct {
	// Dir keeps the data; empty stands for a temporary directory.
	Dir string
	// Logger may be nil.
	Logger *slog.Logger
	// Partitions is how many a topic gets that is created without a number; 0 stands for 8.
	Partitions int
	// MaxMessageBytes bounds a record batch of topics that do not say
	// max.message.bytes themselves; 0 stands for 4 MiB.
	MaxMessageBytes int64
}

// Broker is one Kafka-protocol node inside this process.
type Broker struct {
	log     *slog.Logger
	opts    BrokerOptions
	dir     string
	home    *home // nil when a Stack owns it
	port    int
	mu      sync.Mutex
	cluster *kfake.Cluster // nil while stopped
	closed  bool
}

// StartBroker starts a broker alone. Topics are never created by asking for
// them, as on a production cluster.
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

// startBrokerIn starts a broker in a directory that somebody else locked.
func startBrokerIn(ctx context.Context, h *home, o BrokerOptions) (*Broker, error) {
	if o.Partitions == 0 {
		o.Partitions = defaultPartitions
	}
	if o.MaxMessageBytes == 0 {
		o.MaxMessageBytes = defaultMaxMessageBytes
	}
	b := &Broker{log: loggerOr(o.Logger), opts: o, dir: filepath.Join(h.path, brokerDir)}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making broker directory %s: %w", b.dir, err)
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

// serve loads what is on disk and answers on l. The caller holds mu or is alone.
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
		return fmt.Errorf("starting the embedded broker on %s: %w", b.dir, err)
	}
	b.cluster = cluster
	return nil
}

// Addr is host:port, the same for the life of the Broker.
func (b *Broker) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)) }

// Stop takes the broker off the network; clients are refused until Restart.
// Everything it acknowledged, group membership included, is on disk.
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

// Restart stops the broker when it runs and starts it again on the same address.
func (b *Broker) Restart(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("restarting the embedded broker on %s: it is closed", b.dir)
	}
	b.stop()
	l, err := listenOn(b.port)
	if err != nil {
		return fmt.Errorf("restarting the embedded broker: %w", err)
	}
	return b.serve(ctx, l)
}

// Close stops the broker and removes its directory when it is temporary. It may
// be called more than once.
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

// kfakeLogger hands the broker's messages on. Its "info" is told from the point
// of view of somebody who debugs a client; here it is detail.
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
