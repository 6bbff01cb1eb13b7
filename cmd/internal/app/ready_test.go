package app

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/testenv"
)

// A process whose records stand still, because Kafka refuses what they became, is not ready. One with the
// API says so, and goes on.
func TestRecordsThatStandStillAreReported(t *testing.T) {
	t.Parallel()
	cl, err := stream.Open(t.Context(), stream.Config{Brokers: testenv.Strict(t).Addrs, Partitions: 1, HeartbeatInterval: 100 * time.Millisecond}, testenv.Logger(t), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, cl.Close()) }()
	_, err = cl.CreateTopics(t.Context())
	require.NoError(t, err)
	a := &App{Log: cl}
	check := a.writesCheck()
	require.NoError(t, check.Ping(t.Context()))
	a.stages = []*running{{name: "api"}}
	note := a.writesCheck()
	require.Equal(t, "ok", note.State())

	require.NoError(t, cl.Produce(t.Context(), stream.Message{Topic: stream.Batches, Key: "k", Value: []byte("v")}))
	ctx, stop := context.WithCancel(t.Context())
	ended, refused := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		ended <- cl.Consume(ctx, stream.ConsumerConfig{Group: "g", Topic: stream.Batches, OnAgain: func() {
			select {
			case refused <- struct{}{}:
			default:
			}
		}}, func(_ context.Context, recs []*stream.Record) { recs[0].Again(errors.New("the broker says no")) }, nil)
	}()
	testenv.Receive(t, refused, "a refusal")
	require.ErrorContains(t, check.Ping(t.Context()), "topic batches cannot be finished, because Kafka refuses what they became; they are tried again: the broker says no")
	require.NoError(t, note.Ping(t.Context()))
	require.Contains(t, note.State(), "ok, but 1 records of topic batches cannot be finished")
	stop()
	require.NoError(t, testenv.Receive(t, ended, "the end"))
	require.NoError(t, check.Ping(t.Context()), "another process reads it")
}
