package callbacks

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/test/testenv"
)

// One tenant has callbacks to more hosts that never answer than there are slots. The callbacks of another tenant
// are delivered while all of those hang.
func TestATenantWithDeadHostsDelaysNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := make(chan struct{})
	var inside atomic.Int64
	const hosts = 16
	for h := range hosts {
		dead := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			inside.Add(1)
			<-release
		}))
		t.Cleanup(dead.Close)
		for i := range 10 {
			r.dueOf("noisy", fmt.Sprintf("dead-%d-%d", h, i), dead.URL)
		}
	}
	defer close(release)
	quick, _ := endpoint(t, status(200))
	cfg := local()
	cfg.Concurrency, cfg.PerHost, cfg.PerTenant, cfg.Timeout = 8, 2, 6, time.Minute
	r.start(cfg, "one-1")
	require.Eventually(t, func() bool { return inside.Load() == 6 }, testenv.Patience, time.Millisecond)
	for i := range 20 {
		r.dueOf("quiet", fmt.Sprintf("quick%d", i), quick)
	}
	r.until("20", "SELECT count(*)::text FROM callbacks WHERE state = 'DELIVERED' AND tenant = 'quiet'")
	require.Equal(t, int64(6), inside.Load())
}

// clock is a time that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func slotsAt(cfg Config) (*slots, *clock) {
	s, c := newSlots(cfg.withDefaults()), &clock{time.Unix(1_800_000_000, 0)}
	s.now = c.now
	return s, c
}

// A host that timed out gets one delivery at a time, after pauses that double, and all of them again once it answers.
func TestAHostThatTimesOutGetsFewer(t *testing.T) {
	t.Parallel()
	s, c := slotsAt(Config{})
	of := func(host string) *callback { return &callback{host: host, tenant: "acme"} }
	both := []*callback{of("a"), of("a")}
	require.Equal(t, 2, s.take(both))
	s.free(both[0], true)
	s.free(both[1], true)
	require.Equal(t, 0, s.room().hosts["a"])
	require.Equal(t, firstSilence, s.room().wake, "the second began before the host was known to be silent")

	pause := firstSilence
	for pause < lastSilence {
		c.at = c.at.Add(pause)
		require.Equal(t, 1, s.room().hosts["a"])
		one := []*callback{of("a")}
		s.take(one)
		require.Equal(t, 0, s.room().hosts["a"], "one at a time")
		s.free(one[0], true)
		pause = min(2*pause, lastSilence)
		require.Equal(t, pause, s.room().wake)
	}
	c.at = c.at.Add(pause)
	one := []*callback{of("a")}
	s.take(one)
	require.Zero(t, s.free(one[0], false))
	require.Empty(t, s.room().hosts, "it has as many as any host")
}

// Silent hosts for which nothing is left, because another process delivered it, must not keep the slots of silent
// hosts from one that has callbacks; and they are forgotten.
func TestSilentHostsWithoutCallbacksDelayNoOther(t *testing.T) {
	t.Parallel()
	s, c := slotsAt(Config{Concurrency: 8})
	end := func(host string, timedOut bool) {
		one := []*callback{{host: host, tenant: "acme"}}
		s.take(one)
		s.free(one[0], timedOut)
	}
	for i := range 50 {
		end(fmt.Sprint("gone", i), true)
		c.at = c.at.Add(time.Millisecond)
	}
	end("back", true)
	c.at = c.at.Add(firstSilence)
	rounds := 0
	for r := s.room(); r.hosts["back"] == 0; r = s.room() {
		require.Len(t, r.tried, 2)
		require.True(t, s.looked(r, nil), "the next ones have their turn at once")
		rounds++
	}
	require.Equal(t, 25, rounds)
	s.looked(s.room(), []*callback{{host: "back", tenant: "acme"}})
	end("back", true)
	c.at = c.at.Add(2 * firstSilence)
	require.Equal(t, 1, s.room().hosts["back"], "it goes before those that had no callbacks")

	for range 60 {
		r := s.room()
		require.Equal(t, turnOfIdle, min(turnOfIdle, r.wake), "there are more than have a turn at a time")
		require.False(t, s.looked(r, []*callback{{host: "back"}}))
	}
	c.at = c.at.Add(lastSilence)
	for range 60 {
		s.looked(s.room(), []*callback{{host: "back"}})
	}
	require.Len(t, s.silent, 1, "those without callbacks are forgotten")
}

// TestSlotsAreBounded: whatever ends how, no limit is exceeded by what a room allows, and in the end nothing is taken.
func TestSlotsAreBounded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Concurrency: rapid.IntRange(1, 12).Draw(t, "concurrency"), PerHost: rapid.IntRange(1, 5).Draw(t, "per host"), PerTenant: rapid.IntRange(1, 8).Draw(t, "per tenant")}
		s, c := slotsAt(cfg)
		var running []*callback
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			c.at = c.at.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			if len(running) > 0 && rapid.Bool().Draw(t, "ends") {
				i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
				s.free(running[i], rapid.Bool().Draw(t, "timed out"))
				running = append(running[:i], running[i+1:]...)
				continue
			}
			r := s.room()
			var claimed []*callback // as the claim does
			for range rapid.IntRange(0, 6).Draw(t, "due") {
				cb := &callback{host: rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "host"), tenant: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "tenant")}
				h, t := roomOf(r.hosts, cb.host, cfg.PerHost), roomOf(r.tenants, cb.tenant, cfg.PerTenant)
				if r.free <= 0 || h <= 0 || t <= 0 {
					continue
				}
				r.free, r.hosts[cb.host], r.tenants[cb.tenant] = r.free-1, h-1, t-1
				claimed = append(claimed, cb)
			}
			running = append(running, claimed...)
			s.looked(r, claimed)
			require.Equal(t, len(running), s.take(claimed))
			require.LessOrEqual(t, len(running), cfg.Concurrency)
			require.LessOrEqual(t, s.silentRunning, max(1, cfg.Concurrency/4))
			for _, n := range s.hosts {
				require.LessOrEqual(t, n, cfg.PerHost)
			}
			for _, n := range s.tenants {
				require.LessOrEqual(t, n, cfg.PerTenant)
			}
		}
		for _, cb := range running {
			s.free(cb, false)
		}
		require.Zero(t, s.total+s.silentRunning+len(s.hosts)+len(s.tenants))
	})
}

func roomOf(rooms map[string]int, name string, usual int) int {
	if n, ok := rooms[name]; ok {
		return n
	}
	return usual
}
