package stream

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

func TestTopicLimitLowerThanOurs(t *testing.T) {
	t.Parallel()
	l := open(t, testConfig(t))
	_, err := l.client.IncrementalAlterConfigs(until(t), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: l.full(TasksLow),
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: "max.message.bytes", Value: "2000", ConfigOperation: kafka.ConfigOperationSet}},
		}},
	})
	require.NoError(t, err)
	var tooLarge *TooLargeError
	// The broker takes a moment to heed its new configuration.
	require.Eventually(t, func() bool {
		return errors.As(l.Produce(t.Context(), Message{Topic: TasksLow, Key: "other", Value: make([]byte, 3000)}), &tooLarge)
	}, wait, 10*time.Millisecond)
	msgs := numbered(TasksLow, 0, 300, 1) // one partition: the order is to be seen
	for _, i := range []int{0, 13, 14, 299} {
		msgs[i].Value = make([]byte, 3000)
	}
	require.ErrorAs(t, l.Produce(until(t), msgs...), &tooLarge)
	last, n := -1, 0
	require.NoError(t, l.Scan(until(t), TasksLow, func(r *Record) error {
		if string(r.Key) == "other" {
			return nil
		}
		v, err := strconv.Atoi(string(r.Value))
		require.NoError(t, err)
		require.Greater(t, v, last, "out of order")
		last = v
		n++
		return nil
	}))
	require.Equal(t, 296, n)
}

func TestMissingTopicsAreNamed(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	l, err := Open(t.Context(), cfg, testLog(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	err = l.CheckTopics(until(t))
	require.ErrorContains(t, err, cfg.TopicPrefix+"tasks.high, ")
	require.ErrorContains(t, err, cfg.TopicPrefix+"checkpoints are missing: run `batchyard topics create`")
	created, err := l.CreateTopics(until(t))
	require.NoError(t, err)
	require.Len(t, created, len(Topics))
	require.NoError(t, l.CheckTopics(until(t)))
	created, err = l.CreateTopics(until(t))
	require.NoError(t, err)
	require.Empty(t, created)
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := Open(t.Context(), Config{Brokers: []string{"127.0.0.1:1"}, DialTimeout: 2 * time.Second}, nil, nil)
	require.ErrorContains(t, err, "connecting to Kafka at 127.0.0.1:1: ")
	require.ErrorContains(t, err, "check kafka.brokers")
	_, err = Open(t.Context(), Config{Compression: "rar"}, nil, nil)
	require.ErrorContains(t, err, "kafka.compression")
	_, err = Open(t.Context(), Config{SASL: SASLConfig{Mechanism: "plain"}}, nil, nil)
	require.ErrorContains(t, err, "kafka.sasl.user")
}

func TestClosingFailsWhatWaits(t *testing.T) {
	t.Parallel()
	broker := ownBroker(t)
	l := open(t, Config{Brokers: []string{broker.Addr()}, Partitions: 2})
	require.NoError(t, broker.Stop())
	o := l.NewOutbox("test", 10, 1<<20)
	acked := make(chan error, 1)
	require.NoError(t, o.Put(t.Context(), Unit{Messages: []Message{{Topic: Results, Value: []byte("x")}}, Acked: func(err error) { acked <- err }}))
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	produced := make(chan error, 1)
	go func() { produced <- l.Produce(context.Background(), Message{Topic: Results, Value: []byte("y")}) }()
	<-short.Done()
	require.NoError(t, l.Close())
	require.ErrorIs(t, receive(t, acked, "the ack"), ErrClosed)
	require.ErrorIs(t, receive(t, produced, "Produce"), ErrClosed)
	require.NoError(t, o.Close(until(t)))
}

// TestFlush waits for what was put, and not for what will never be there.
func TestFlush(t *testing.T) {
	t.Parallel()
	broker := ownBroker(t)
	l := open(t, Config{Brokers: []string{broker.Addr()}, Partitions: 2})
	_, err := l.CreateTopics(t.Context())
	require.NoError(t, err)
	o := l.NewOutbox("test", 1000, 1<<20)
	require.NoError(t, o.Flush(t.Context()), "nothing was put")
	var acked atomic.Int64
	for i := range 100 {
		e := task.Event{Action: task.TaskAssigned, Tenant: "default", TaskID: strconv.Itoa(i)}
		require.NoError(t, o.Put(t.Context(), Unit{Events: []task.Event{e}, Acked: func(error) { acked.Add(1) }}))
		if i%10 == 0 {
			require.NoError(t, o.Flush(until(t)))
			require.EqualValues(t, i+1, acked.Load())
		}
	}

	require.NoError(t, broker.Stop())
	require.NoError(t, o.Put(t.Context(), Unit{Messages: []Message{{Topic: Results, Value: []byte("x")}}}))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, o.Flush(short), context.DeadlineExceeded)
	require.ErrorIs(t, o.Close(short), context.DeadlineExceeded)
	require.ErrorIs(t, o.Flush(until(t)), ErrClosed)
	require.NoError(t, l.Close())
}
