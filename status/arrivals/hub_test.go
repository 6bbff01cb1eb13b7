package arrivals

import (
	"context"
	"log/slog"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/embedded"
	"github.com/batchyard/batchyard/internal/metrics"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/testenv"
)

func TestMain(m *testing.M) { testenv.StageMain(m) }

// site is a hub on a broker.
type site struct {
	hub     *Hub
	log     *stream.Client
	metrics *metrics.API
	cfg     stream.Config
}

func open(t *testing.T, brokers ...string) *site {
	t.Helper()
	cfg := stream.Config{Brokers: brokers, TopicPrefix: testenv.TopicPrefix(), Partitions: 1}
	log, err := stream.Open(t.Context(), cfg, testenv.Logger(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	_, err = log.CreateTopics(t.Context())
	require.NoError(t, err)
	m := &metrics.New(nil).API
	h := New(Deps{Stream: log, Logger: slog.New(slog.DiscardHandler), Metrics: m})
	t.Cleanup(h.Close)
	return &site{h, log, m, cfg}
}

// followed is how many partitions the hub follows.
func (s *site) followed(t *testing.T) float64 {
	t.Helper()
	var m dto.Metric
	require.NoError(t, s.metrics.Followed.Write(&m))
	return m.GetGauge().GetValue()
}

func (s *site) write(t *testing.T, results ...*task.Result) {
	t.Helper()
	for _, r := range results {
		msg, err := records.ResultMessage(r)
		require.NoError(t, err)
		require.NoError(t, s.log.Produce(t.Context(), msg))
	}
}

func result(tk *task.Task, generation int) *task.Result {
	r := task.NewResult(tk, task.Success, time.Now())
	r.Generation = generation
	return r
}

func TestResultsAreHeardOf(t *testing.T) {
	t.Parallel()
	s := open(t, testenv.Brokers(t)...)
	mine := &task.Task{ID: "a", Tenant: "t", Model: "m", Endpoint: task.EndpointChat, Input: task.Input(`{}`)}
	others, otherwise := *mine, *mine
	others.Tenant, otherwise.Model = "u", "n"
	s.write(t, result(mine, 7)) // before anybody waits
	run := task.Run{Key: mine.Key(), Generation: 1}
	a, b := s.hub.Expect(t.Context(), run, mine.Fingerprint()), s.hub.Expect(t.Context(), run, mine.Fingerprint())
	require.Equal(t, 1.0, s.followed(t), "one partition for all who wait")
	// Otherwise all who may write to the topic could answer a task.
	cfg := s.cfg
	cfg.SigningKeys = []string{"another key, which is as long as it has to be"}
	stranger, err := stream.Open(t.Context(), cfg, testenv.Logger(t), nil)
	require.NoError(t, err)
	(&site{log: stranger}).write(t, result(mine, 9))
	require.NoError(t, stranger.Close())
	require.NoError(t, s.log.Produce(t.Context(), stream.Message{Topic: stream.Results, Key: "a", Value: []byte("no result")}))
	s.write(t, result(&others, 1), result(&otherwise, 1), result(mine, 0), result(mine, 1), result(mine, 2))
	for _, w := range []*Arrival{a, b} {
		got := testenv.Receive(t, w.Result(), "the result")
		require.Equal(t, 1, got.Generation, "the first of its run")
		require.Equal(t, mine.Fingerprint().String(), got.Fingerprint)
		select {
		case <-w.Unsure():
			require.FailNow(t, "nothing was missed")
		default:
		}
		w.Close()
	}
	// A cancel does not know the fingerprint.
	c := s.hub.Expect(t.Context(), task.Run{Key: task.Key{Tenant: "t", ID: "c"}}, mine.Fingerprint())
	s.write(t, &task.Result{TaskID: "c", Tenant: "t", State: task.Cancelled, FinishedAt: time.Now()})
	require.Equal(t, task.Cancelled, testenv.Receive(t, c.Result(), "the cancel").State)
	c.Close()
}

// A partition is not followed for longer than it is waited for, and a little longer.
func TestNobodyWaits(t *testing.T) {
	t.Parallel()
	s := open(t, testenv.Brokers(t)...)
	s.hub.idle = time.Millisecond
	run := task.Run{Key: task.Key{Tenant: "t", ID: "a"}}
	first := s.hub.Expect(t.Context(), run, task.Fingerprint{})
	second := s.hub.Expect(t.Context(), run, task.Fingerprint{})
	first.Close()
	followed := func() bool { return s.followed(t) > 0 }
	require.Never(t, func() bool { return !followed() }, 100*time.Millisecond, 10*time.Millisecond)
	second.Close()
	require.Eventually(t, func() bool { return !followed() }, testenv.Patience, time.Millisecond)
	third := s.hub.Expect(t.Context(), run, task.Fingerprint{})
	defer third.Close()
	s.write(t, &task.Result{TaskID: "a", Tenant: "t", State: task.Cancelled, FinishedAt: time.Now()})
	testenv.Receive(t, third.Result(), "the result")
}

// Those who wait while Kafka is away are told to ask elsewhere, and hear of their results when it is back.
func TestThoseWhoWaitAreUnsureWithoutKafka(t *testing.T) {
	t.Parallel()
	broker, err := embedded.StartBroker(t.Context(), embedded.BrokerOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, broker.Close()) })
	s := open(t, broker.Addr())
	run := task.Run{Key: task.Key{Tenant: "t", ID: "a"}}
	before := s.hub.Expect(t.Context(), run, task.Fingerprint{})
	defer before.Close()
	require.NoError(t, broker.Stop())
	testenv.Receive(t, before.Unsure(), "the doubt")
	require.NoError(t, broker.Restart(t.Context()))
	s.write(t, &task.Result{TaskID: "a", Tenant: "t", State: task.Cancelled, FinishedAt: time.Now()})
	testenv.Receive(t, before.Result(), "the result")

	gone, leave := context.WithCancel(t.Context())
	leave()
	s.hub.Close()
	closed := s.hub.Expect(gone, run, task.Fingerprint{})
	defer closed.Close()
	testenv.Receive(t, closed.Unsure(), "the doubt")
}
