package test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/harness"
)

// disruption runs six processes under load and calls disturb in the middle. No
// process may end by it, and every promise has to hold afterwards.
func disruption(t *testing.T, disturb func(t *testing.T, s *harness.Services, in *harness.Installation, l *load)) {
	s := harness.Get(t, harness.Disruptable)
	disrupted := harness.Many(2000)
	in := harness.Install(t, s, under(nil))
	in.Fleet(t, unequal()...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	at := timeline(t)
	ps := six(t, in)
	l := submit(t, ps["api"].API(), "t", hooks.URL, disrupted)
	whenEnded(t, in, disrupted/8, disrupted)
	at("disturbed")
	disturb(t, s, in, l)
	at("no longer disturbed")
	ids := l.wait(t)
	at("all are accepted")
	in.Await(t, ids, 2*harness.Patience)
	at("all have ended")
	in.CheckPromises(t, ids, hooks)
	at("promises are kept")
	allAlive(t, ps)
	for stage, p := range ps {
		require.Equalf(t, 200, p.Readyz(t), "readiness of %s", stage)
	}
}

// TestRedisEmptied has Redis forget heartbeats, credits and claims, twice.
func TestRedisEmptied(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, in *harness.Installation, _ *load) {
		s.EmptyRedis(t)
		harness.Eventually(t, 2*harness.Patience, "it goes on", func() bool { return ended(t, in) >= harness.Many(2000)/2 })
		s.EmptyRedis(t)
	})
}

// TestRedisRestarted has Redis gone for a moment, with all that it knew.
func TestRedisRestarted(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, _ *harness.Installation, l *load) {
		s.StopRedis(t)
		// Taking tasks in does not wait for it.
		harness.Eventually(t, 2*harness.Patience, "all are accepted without Redis", func() bool { return int(l.accepted.Load()) == len(l.ids) })
		s.StartRedis(t)
	})
}

// TestPostgresStopped has Postgres away for 10 s. Tasks are accepted and run all
// the while; what happened is recorded afterwards.
func TestPostgresStopped(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, in *harness.Installation, l *load) {
		s.StopPostgres(t)
		outage := time.After(10 * time.Second)
		harness.Eventually(t, 2*harness.Patience, "all are accepted without Postgres", func() bool { return int(l.accepted.Load()) == len(l.ids) })
		results := map[string]bool{}
		seen := 0
		in.Consume(t, stream.Results).Until(t, "all are answered without Postgres", func(all []*kgo.Record) bool {
			for ; seen < len(all); seen++ {
				results[string(all[seen].Key)] = true
			}
			return len(results) == len(l.ids)
		})
		<-outage
		s.StartPostgres(t)
	})
}

// TestBrokerRestarted has the broker killed and started again.
func TestBrokerRestarted(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, _ *harness.Installation, _ *load) { s.RestartBroker(t) })
}
