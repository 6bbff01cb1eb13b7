package stream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/unreachable"
)

// ErrClosed is returned once the Log or the Outbox is closed.
var ErrClosed = errors.New("the log is closed")

// metadataTTL bounds how long a new leader or partition stays unseen.
const metadataTTL = 3 * time.Second

// Log is a connection to Kafka: it writes, reads and looks after topics. One
// Log serves a whole process; all methods may be called from any goroutine.
type Log struct {
	cfg       Config
	log       *slog.Logger
	m         *metrics.Metrics
	addr      net.Addr
	transport *kafka.Transport
	client    *kafka.Client
	conns     connSet
	layout    *layouts
	producer  *producer
	stop      context.CancelFunc
	closed    chan struct{}
	closeOnce sync.Once
	wg        sync.WaitGroup
}

// Open connects to Kafka. It asks a broker once and fails when none answers
// within the dial timeout; after that, brokers may come and go. log and m may
// be nil.
func Open(ctx context.Context, cfg Config, log *slog.Logger, m *metrics.Metrics) (*Log, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	compression, err := cfg.compression()
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if m == nil {
		m = metrics.New(nil)
	}
	l := &Log{cfg: cfg, log: log.With("part", "stream"), m: m, addr: kafka.TCP(cfg.Brokers...), closed: make(chan struct{})}
	background, stop := context.WithCancel(context.Background())
	l.stop = stop
	if l.transport, err = l.newTransport(background); err != nil {
		stop()
		return nil, err
	}
	l.client = &kafka.Client{Addr: l.addr, Transport: l.transport}
	l.layout = newLayouts(l)
	if err := l.Ping(ctx); err != nil {
		stop()
		l.conns.closeAll()
		return nil, &unreachable.Error{Service: "Kafka", Addr: strings.Join(cfg.Brokers, ","), Setting: "kafka.brokers", Err: err}
	}
	l.layout.refresh(ctx)
	l.producer = newProducer(background, l, compression)
	l.wg.Go(func() { l.layout.run(background) })
	return l, nil
}

// newTransport makes a pool of connections. ctx ends its background work.
func (l *Log) newTransport(ctx context.Context) (*kafka.Transport, error) {
	tlsConfig, err := l.cfg.TLS.load()
	if err != nil {
		return nil, err
	}
	mechanism, err := l.cfg.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(Topics))
	for i, t := range Topics {
		names[i] = l.full(t.Name)
	}
	dialer := &net.Dialer{Timeout: l.cfg.DialTimeout, KeepAlive: 15 * time.Second}
	return &kafka.Transport{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return l.conns.add(conn)
		},
		DialTimeout:    l.cfg.DialTimeout,
		IdleTimeout:    time.Minute,
		MetadataTTL:    metadataTTL,
		MetadataTopics: names,
		ClientID:       l.cfg.ClientID,
		TLS:            tlsConfig,
		SASL:           mechanism,
		Context:        ctx,
	}, nil
}

// Ping asks a broker for its cluster, on a new connection.
func (l *Log) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	_, err := l.brokerTopics(ctx)
	return err
}

// brokerTopics returns the full names of the topics that the broker has and can
// use now: the transport's own answer may be seconds old.
func (l *Log) brokerTopics(ctx context.Context) (map[string]bool, error) {
	res, err := l.freshMetadata(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, t := range res.Topics {
		leaderless := func(p kafka.Partition) bool { return p.Leader.Host == "" }
		if t.Error == nil && len(t.Partitions) > 0 && !slices.ContainsFunc(t.Partitions, leaderless) {
			names[t.Name] = true
		}
	}
	return names, nil
}

func (l *Log) freshMetadata(ctx context.Context) (*kafka.MetadataResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport, err := l.newTransport(ctx)
	if err != nil {
		return nil, err
	}
	defer transport.CloseIdleConnections()
	return (&kafka.Client{Addr: l.addr, Transport: transport}).Metadata(ctx, &kafka.MetadataRequest{Topics: transport.MetadataTopics})
}

// Close ends everything at once: what is waiting to be written gets ErrClosed.
// Close the outboxes and end the consumers first.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		l.stop()
		l.producer.close()
		l.transport.CloseIdleConnections()
		l.conns.closeAll()
		l.wg.Wait()
	})
	return nil
}

// connSet knows every open connection: the client leaves a cancelled request
// its connection until the broker answers, which Close does not wait for.
type connSet struct {
	mu     sync.Mutex
	conns  map[*trackedConn]struct{}
	closed bool
}

type trackedConn struct {
	net.Conn
	set  *connSet
	once sync.Once
}

func (s *connSet) add(conn net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = conn.Close()
		return nil, ErrClosed
	}
	if s.conns == nil {
		s.conns = map[*trackedConn]struct{}{}
	}
	c := &trackedConn{Conn: conn, set: s}
	s.conns[c] = struct{}{}
	return c, nil
}

func (c *trackedConn) Close() error {
	c.once.Do(func() {
		c.set.mu.Lock()
		delete(c.set.conns, c)
		c.set.mu.Unlock()
	})
	return c.Conn.Close()
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
}
