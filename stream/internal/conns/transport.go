package conns

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
)

// Options say how connections are made.
type Options struct {
	Topics      []string // of which metadata is kept
	ClientID    string
	DialTimeout time.Duration
	MetadataTTL time.Duration // of a leader or partition that went unnoticed
	TLS         *tls.Config
	SASL        sasl.Mechanism
}

// Transport returns a pool of connections, which the set tracks. Its background work stops when ctx ends.
func (s *Set) Transport(ctx context.Context, o Options) *kafka.Transport {
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 15 * time.Second}
	return &kafka.Transport{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return s.Add(conn)
		},
		DialTimeout:    o.DialTimeout,
		IdleTimeout:    time.Minute,
		MetadataTTL:    o.MetadataTTL,
		MetadataTopics: o.Topics,
		ClientID:       o.ClientID,
		TLS:            o.TLS,
		SASL:           o.SASL,
		Context:        ctx,
	}
}
