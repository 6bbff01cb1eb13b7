package test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/test/harness"
)

// disruption runs six processes under load and calls disrupt in the middle. No process
// may exit because of it, and every promise must hold afterwards.
func disruption(t *testing.T, disrupt func(t *testing.T, s *harness.Services, in *harness.Installation, l *load)) {
	s := harness.Get(t, harness.Disruptable)
	disrupted := harness.Many(2000)
	in := harness.Install(t, s, loadSettings(nil))
	in.Fleet(t, unequalFleet()...)
	hooks := harness.Hooks(t, harness.Secret, nil)
	at := timeline(t)
	ps := sixProcesses(t, in)
	l := submit(t, ps["api"].API(), "t", hooks.URL, disrupted)
	awaitSomeEnded(t, in, disrupted/8, disrupted)
	at("disrupting")
	disrupt(t, s, in, l)
	at("disruption is over")
	ids := l.wait(t)
	at("all tasks are accepted")
	in.Await(t, ids, 2*harness.Patience)
	at("all tasks have ended")
	in.CheckPromises(t, ids, hooks)
	in.VerifyLog(t)
	at("promises hold")
	allAlive(t, ps)
	for stage, p := range ps {
		require.Equalf(t, 200, p.Readyz(t), "readiness of %s", stage)
	}
}

// TestRedisEmptied deletes heartbeats, credits and claims in Redis, twice.
func TestRedisEmptied(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, in *harness.Installation, _ *load) {
		s.EmptyRedis(t)
		harness.Eventually(t, 2*harness.Patience, "tasks continue to end", func() bool { return ended(t, in) >= harness.Many(2000)/2 })
		s.EmptyRedis(t)
	})
}

// TestRedisRestarted stops Redis for a moment; it comes back empty.
func TestRedisRestarted(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, _ *harness.Installation, l *load) {
		s.StopRedis(t)
		// Tasks are accepted without waiting for Redis.
		harness.Eventually(t, 2*harness.Patience, "all tasks are accepted without Redis", func() bool { return int(l.accepted.Load()) == len(l.ids) })
		s.StartRedis(t)
	})
}

// TestPostgresStopped stops Postgres for 10 s. In the meantime tasks are accepted and
// run; everything is recorded afterwards.
func TestPostgresStopped(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, in *harness.Installation, l *load) {
		s.StopPostgres(t)
		outage := time.After(10 * time.Second)
		harness.Eventually(t, 2*harness.Patience, "all tasks are accepted without Postgres", func() bool { return int(l.accepted.Load()) == len(l.ids) })
		results := map[string]bool{}
		seen := 0
		in.Consume(t, stream.Results).Until(t, "all tasks have results without Postgres", func(all []*kgo.Record) bool {
			for ; seen < len(all); seen++ {
				results[string(all[seen].Key)] = true
			}
			return len(results) == len(l.ids)
		})
		<-outage
		s.StartPostgres(t)
	})
}

// TestBrokerRestarted kills the broker and starts it again.
func TestBrokerRestarted(t *testing.T) {
	harness.Parallel(t, harness.Disruptable)
	disruption(t, func(t *testing.T, s *harness.Services, _ *harness.Installation, _ *load) { s.RestartBroker(t) })
}
