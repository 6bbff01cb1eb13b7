package stream

import (
	"errors"
	"time"

	"github.com/batchyard/batchyard/internal/config"
	"github.com/batchyard/batchyard/stream/internal/security"
	"github.com/batchyard/batchyard/stream/internal/signature"
)

// Config says where Kafka is and how to use it. Zero fields mean their defaults.
type Config struct {
	Brokers     []string `yaml:"brokers" default:"127.0.0.1:9092" doc:"Bootstrap brokers as host:port."`
	ClientID    string   `yaml:"client_id" default:"batchyard" doc:"Client id of this program in the brokers' logs and quotas."`
	TopicPrefix string   `yaml:"topic_prefix" default:"" doc:"Prefix of every topic and consumer group, so that several installations can share a cluster."`

	Partitions      int           `yaml:"partitions" default:"12" unit:"partitions" min:"1" max:"1000" doc:"Number of partitions of topics that Batchyard creates."`
	Replication     int           `yaml:"replication" default:"1" unit:"replicas" min:"1" max:"9" doc:"Number of replicas of topics that Batchyard creates. Use 3 in production."`
	Retention       time.Duration `yaml:"retention" default:"168h" min:"1h" max:"87600h" doc:"Retention of all topics but those of parked tasks, dlq and checkpoints: a stage may be absent for this long."`
	ParkedRetention time.Duration `yaml:"parked_retention" default:"720h" min:"1h" max:"87600h" doc:"Retention of the topic of parked tasks, at least kafka.retention. A task that waits longer than half of it is written again."`
	DLQRetention    time.Duration `yaml:"dlq_retention" default:"720h" min:"1h" max:"87600h" doc:"Retention of the dead-letter topic, at least kafka.retention."`

	Compression    string        `yaml:"compression" default:"none" enum:"none,lz4,snappy,zstd,gzip" doc:"Compression of the records that are produced."`
	EventLinger    time.Duration `yaml:"event_linger" default:"2ms" min:"0s" max:"1s" doc:"Minimum time between two writes of audit events. Events in between are sent together."`
	BufferBytes    int64         `yaml:"buffer_bytes" default:"64MiB" unit:"bytes" min:"1048576" max:"4294967296" doc:"Maximum size of records that are not acknowledged yet. Further writes wait."`
	DialTimeout    time.Duration `yaml:"dial_timeout" default:"5s" min:"100ms" max:"1m" doc:"Timeout for connecting to a broker, including TLS and authentication."`
	RequestTimeout time.Duration `yaml:"request_timeout" default:"10s" min:"500ms" max:"5m" doc:"Timeout of a request to a broker. It is retried."`

	FetchWait  time.Duration `yaml:"fetch_wait" default:"500ms" min:"10ms" max:"10s" doc:"How long a broker holds a fetch while there are no new records."`
	FetchBytes int64         `yaml:"fetch_bytes" default:"1MiB" unit:"bytes" min:"4096" max:"67108864" doc:"Maximum size of one fetch from one partition. A larger record is fetched anyway."`

	SessionTimeout    time.Duration `yaml:"session_timeout" default:"10s" min:"100ms" max:"5m" doc:"Without a heartbeat for this long, the broker gives a member's partitions to others. Brokers allow 6s to 30m by default."`
	HeartbeatInterval time.Duration `yaml:"heartbeat_interval" default:"500ms" min:"20ms" max:"1m" doc:"How often a member sends a heartbeat to the broker. The answer also announces rebalances."`
	RebalanceTimeout  time.Duration `yaml:"rebalance_timeout" default:"10s" min:"100ms" max:"5m" doc:"How long members may take to rejoin during a rebalance."`
	CommitInterval    time.Duration `yaml:"commit_interval" default:"200ms" min:"10ms" max:"1m" doc:"How often the offsets of finished records are committed."`

	SigningKeys []string `yaml:"signing_keys" secret:"true" doc:"Secrets with which the stages sign the records that they write, each of at least 32 characters. The first signs, all are accepted. Internal topics accept only signed records. Use the same keys in every process. Empty: a built-in key, so that anyone who may write to the topics can forge records."`

	TLS  TLSConfig  `yaml:"tls"`
	SASL SASLConfig `yaml:"sasl"`
}

// TLSConfig says whether and how connections to Kafka are encrypted.
type TLSConfig = security.TLS

// SASLConfig says how to authenticate at Kafka.
type SASLConfig = security.SASL

func (c Config) withDefaults() Config {
	config.FillDefaults(&c)
	return c
}

// Check reports settings that struct tags cannot reject.
func (c Config) Check() error {
	if c.HeartbeatInterval*3 > c.SessionTimeout {
		return errors.New("kafka.heartbeat_interval must be at most a third of kafka.session_timeout")
	}
	if c.ParkedRetention < c.Retention {
		return errors.New("kafka.parked_retention must be at least kafka.retention")
	}
	if c.DLQRetention < c.Retention {
		return errors.New("kafka.dlq_retention must be at least kafka.retention")
	}
	return signature.CheckKeys(c.SigningKeys)
}
