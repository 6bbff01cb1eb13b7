package app

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/internal/waiting"
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

// A stage that stands still is not ready, and says what stands still and what helps. A process with the API says so, and
// stays ready.
func TestAStageThatStandsStillIsReported(t *testing.T) {
	t.Parallel()
	now := time.Now()
	list := waiting.List{{Reason: waiting.Stuck, What: "tasks.normal/3@17", Since: now, Still: now}}
	a := &App{stages: []*running{{name: "router"}}, names: []string{"router"}}
	a.stages[0].ready.Store(true)
	a.asks("router", func(time.Time) waiting.List { return list })
	a.waiting = waiting.NewBoard(time.Minute, a.sources, testenv.Logger(t), &metrics.New(nil).Waiting)
	a.waiting.Look(now.Add(time.Minute))
	require.NoError(t, a.stageReady("router"))
	a.waiting.Look(now.Add(time.Minute + time.Second))
	require.ErrorContains(t, a.stageReady("router"), "tasks.normal/3@17 has stood still for 1m1s (stuck): nothing is known that it waits for. Remedy: restart the stage")
	a.stages = append(a.stages, &running{name: "api"})
	require.NoError(t, a.stageReady("router"))
	require.Contains(t, a.stageNote("router"), "has stood still for 1m1s")
	list = nil
	a.waiting.Look(now.Add(time.Hour))
	require.Empty(t, a.stageNote("router"))
}
