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
	"github.com/batchyard/batchyard/test/testenv"
)

func TestABrokerLimitBelowOursIsRespected(t *testing.T) {
	t.Parallel()
	cl := open(t, testConfig(t))
	_, err := cl.kafka.IncrementalAlterConfigs(until(t), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: cl.full(TasksLow),
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: "max.message.bytes", Value: "2000", ConfigOperation: kafka.ConfigOperationSet}},
		}},
	})
	require.NoError(t, err)
	var tooLarge *TooLargeError
	// The broker takes a moment to apply the new configuration.
	require.Eventually(t, func() bool {
		return errors.As(cl.Produce(t.Context(), Message{Topic: TasksLow, Key: "other", Value: make([]byte, 3000)}), &tooLarge)
	}, testenv.Patience, 10*time.Millisecond)
	msgs := numbered(TasksLow, 0, 300, 1) // one key, so one partition: check the order
	for _, i := range []int{0, 13, 14, 299} {
		msgs[i].Value = make([]byte, 3000)
	}
	require.ErrorAs(t, cl.Produce(until(t), msgs...), &tooLarge)
	last, n := -1, 0
	require.NoError(t, cl.Scan(until(t), TasksLow, func(r *Record) error {
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

func TestCheckTopicsNamesMissingTopics(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cl, err := Open(t.Context(), cfg, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	err = cl.CheckTopics(until(t))
	require.ErrorContains(t, err, cfg.TopicPrefix+"tasks.high, ")
	require.ErrorContains(t, err, cfg.TopicPrefix+"checkpoints are missing: run `batchyard topics create`")
	created, err := cl.CreateTopics(until(t))
	require.NoError(t, err)
	require.Len(t, created, len(Topics))
	require.NoError(t, cl.CheckTopics(until(t)))
	created, err = cl.CreateTopics(until(t))
	require.NoError(t, err)
	require.Empty(t, created)
}

func TestOpenExplainsErrors(t *testing.T) {
	t.Parallel()
	_, err := Open(t.Context(), Config{Brokers: []string{"127.0.0.1:1"}, DialTimeout: 2 * time.Second}, nil, nil)
	require.ErrorContains(t, err, "connecting to Kafka at 127.0.0.1:1: ")
	require.ErrorContains(t, err, "check kafka.brokers")
	_, err = Open(t.Context(), Config{Compression: "rar"}, nil, nil)
	require.ErrorContains(t, err, "kafka.compression")
	_, err = Open(t.Context(), Config{SASL: SASLConfig{Mechanism: "plain"}}, nil, nil)
	require.ErrorContains(t, err, "kafka.sasl.user")
}

func TestCloseFailsWaitingMessages(t *testing.T) {
	t.Parallel()
	broker := ownBroker(t)
	cl := open(t, Config{Brokers: []string{broker.Addr()}, Partitions: 2})
	require.NoError(t, broker.Stop())
	o := cl.NewOutbox("test", 10, 1<<20)
	acked := make(chan error, 1)
	require.NoError(t, o.Put(t.Context(), Unit{Messages: []Message{{Topic: Results, Value: []byte("x")}}, Acked: func(err error) { acked <- err }}))
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	produced := make(chan error, 1)
	go func() { produced <- cl.Produce(context.Background(), Message{Topic: Results, Value: []byte("y")}) }()
	<-short.Done()
	require.NoError(t, cl.Close())
	require.ErrorIs(t, testenv.Receive(t, acked, "the ack"), ErrClosed)
	require.ErrorIs(t, testenv.Receive(t, produced, "Produce"), ErrClosed)
	require.NoError(t, o.Close(until(t)))
}

// Flush waits for all units, and gives up when the outbox gave up.
func TestFlush(t *testing.T) {
	t.Parallel()
	broker := ownBroker(t)
	cl := open(t, Config{Brokers: []string{broker.Addr()}, Partitions: 2})
	_, err := cl.CreateTopics(t.Context())
	require.NoError(t, err)
	o := cl.NewOutbox("test", 1000, 1<<20)
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
	require.NoError(t, cl.Close())
}
