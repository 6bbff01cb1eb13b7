package stream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/unreachable"
	"github.com/batchyard/batchyard/stream/internal/conns"
	"github.com/batchyard/batchyard/stream/internal/layout"
	"github.com/batchyard/batchyard/stream/internal/produce"
	"github.com/batchyard/batchyard/stream/internal/refusals"
	"github.com/batchyard/batchyard/stream/internal/signature"
)

// ErrClosed is returned once the Log or the Outbox is closed.
var ErrClosed = errors.New("the Kafka client is closed")

// metadataTTL bounds how long a new leader or partition goes unnoticed.
const metadataTTL = 3 * time.Second

// Client is a connection to Kafka that writes, reads and manages topics. One serves a whole
// process; all methods may be called from any goroutine.
type Client struct {
	cfg       Config
	logger    *slog.Logger
	metrics   *metrics.Metrics
	addr      net.Addr
	transport *kafka.Transport
	kafka     *kafka.Client
	conns     conns.Set
	layout    *layout.Layouts
	signer    *signature.Signer
	producer  *producer
	refusals  *refusals.Count
	consumers sync.Map // of *consumer, while they run
	stop      context.CancelFunc
	closed    chan struct{}
	closeOnce sync.Once
	wg        sync.WaitGroup
}

// Open connects to Kafka. It fails when no broker answers within the dial timeout; after
// that, brokers may come and go. logger and m may be nil.
func Open(ctx context.Context, cfg Config, logger *slog.Logger, m *metrics.Metrics) (*Client, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	compression, err := produce.Compression(cfg.Compression)
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if m == nil {
		m = metrics.New(nil)
	}
	cl := &Client{cfg: cfg, logger: logger.With("part", "stream"), metrics: m, addr: kafka.TCP(cfg.Brokers...), signer: signature.NewSigner(cfg.TopicPrefix, cfg.SigningKeys), closed: make(chan struct{})}
	cl.refusals = refusals.New(func(topic string, n int) { m.Stream.Refused.WithLabelValues(topic).Set(float64(n)) })
	background, stop := context.WithCancel(context.Background())
	cl.stop = stop
	if cl.transport, err = cl.newTransport(background); err != nil {
		stop()
		return nil, err
	}
	cl.kafka = &kafka.Client{Addr: cl.addr, Transport: cl.transport}
	topics := make([]layout.Name, len(Topics))
	for i, t := range Topics {
		topics[i] = layout.Name{Short: t.Name, Full: cl.full(t.Name)}
	}
	cl.layout = layout.New(layout.Cluster{
		Kafka: cl.kafka, Transport: cl.transport, Addr: cl.addr, Topics: topics, Timeout: cfg.RequestTimeout, Closed: cl.closed, ErrClosed: ErrClosed,
	})
	if err := cl.Ping(ctx); err != nil {
		stop()
		cl.conns.CloseAll(ErrClosed)
		return nil, &unreachable.Error{Service: "Kafka", Addr: strings.Join(cfg.Brokers, ","), Setting: "kafka.brokers", Err: err}
	}
	cl.layout.Refresh(ctx)
	cl.layout.RefreshIDs(ctx)
	cl.producer = newProducer(background, cl, compression)
	cl.wg.Go(func() { cl.layout.Run(background) })
	return cl, nil
}

// newTransport returns a pool of connections. Its background work stops when ctx ends.
func (cl *Client) newTransport(ctx context.Context) (*kafka.Transport, error) {
	tlsConfig, err := cl.cfg.TLS.Load()
	if err != nil {
		return nil, err
	}
	mechanism, err := cl.cfg.SASL.Load()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(Topics))
	for i, t := range Topics {
		names[i] = cl.full(t.Name)
	}
	return cl.conns.Transport(ctx, conns.Options{
		Topics: names, ClientID: cl.cfg.ClientID, DialTimeout: cl.cfg.DialTimeout, MetadataTTL: metadataTTL, TLS: tlsConfig, SASL: mechanism,
	}), nil
}

// Ping asks a broker for the cluster's metadata on a new connection.
func (cl *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cl.cfg.DialTimeout)
	defer cancel()
	_, err := cl.brokerTopics(ctx)
	return err
}

// brokerTopics returns the full names of the topics that can be written to now, every
// partition having a leader. It opens a new connection because the transport caches its
// metadata for seconds.
func (cl *Client) brokerTopics(ctx context.Context) (map[string]bool, error) {
	res, err := cl.freshMetadata(ctx)
	if err != nil {
		return nil, err
	}
	return layout.Writable(res), nil
}

func (cl *Client) freshMetadata(ctx context.Context) (*kafka.MetadataResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	transport, err := cl.newTransport(ctx)
	if err != nil {
		return nil, err
	}
	defer transport.CloseIdleConnections()
	return (&kafka.Client{Addr: cl.addr, Transport: transport}).Metadata(ctx, &kafka.MetadataRequest{Topics: transport.MetadataTopics})
}

// Close stops everything immediately: messages that wait to be written fail with ErrClosed.
// Close the outboxes and stop the consumers first.
func (cl *Client) Close() error {
	cl.closeOnce.Do(func() {
		close(cl.closed)
		cl.stop()
		cl.producer.close()
		cl.transport.CloseIdleConnections()
		cl.conns.CloseAll(ErrClosed)
		cl.wg.Wait()
	})
	return nil
}
