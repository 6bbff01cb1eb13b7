package learn

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/device"
)

// clock is a breaker in virtual time.
type clock struct {
	*Breaker
	t   require.TestingT
	now time.Time
}

func newClock(t require.TestingT, cfg BreakerConfig) *clock {
	return &clock{NewBreaker(cfg), t, epoch}
}

// request runs one request of the given length; false if it was not allowed.
func (c *clock) request(o Outcome, took time.Duration) bool {
	if !c.Allow(c.now) {
		return false
	}
	c.Started(c.now)
	c.now = c.now.Add(took)
	c.Ended(c.now, o, took)
	return true
}

func (c *clock) state() string { return c.Health(c.now).State }

func (c *clock) requests(n int, o Outcome, took time.Duration) {
	for range n {
		require.True(c.t, c.request(o, took))
	}
}

func TestBreakerOpensForAGrowingTimeAndProbesOnce(t *testing.T) {
	c := newClock(t, BreakerConfig{})
	const took = 100 * time.Millisecond
	c.requests(100, OK, took)
	c.requests(4, Fault, took)
	c.requests(1, OK, took)
	c.requests(4, TimedOut, took)
	require.Equal(t, device.StateClosed, c.state())
	c.requests(1, Fault, took)
	for i, open := range []int{5, 10, 20, 40, 80, 120, 120} {
		h := c.Health(c.now)
		require.Equal(t, device.StateOpen, h.State)
		require.Equal(t, i+1, h.Opened)
		require.Equal(t, c.now.Add(time.Duration(open)*time.Second), h.OpenUntil)
		require.NotEmpty(t, h.Why)
		c.now = h.OpenUntil.Add(-1)
		require.False(t, c.request(OK, took))
		c.now = h.OpenUntil
		require.Equal(t, device.StateHalfOpen, c.state())
		require.True(t, c.Allow(c.now))
		c.Started(c.now)
		require.False(t, c.Allow(c.now), "one at a time")
		c.now = c.now.Add(took)
		c.Ended(c.now, Neutral, took) // it was cancelled
		require.Equal(t, device.StateHalfOpen, c.state())
		require.True(t, c.request(Fault, took), "another may probe")
	}
	c.now = c.now.Add(2 * time.Minute)
	require.True(t, c.request(OK, took))
	require.Equal(t, device.StateClosed, c.state())
	require.Equal(t, 8, c.Health(c.now).Opened, "not healthy for long enough")
	c.requests(5, Fault, took)
	require.Equal(t, c.now.Add(2*time.Minute), c.Health(c.now).OpenUntil)
	c.now = c.now.Add(2 * time.Minute)
	c.requests(1, OK, took)
	c.now = c.now.Add(time.Minute)
	require.Zero(t, c.Health(c.now).Opened)
	c.requests(5, Fault, took)
	require.Equal(t, c.now.Add(5*time.Second), c.Health(c.now).OpenUntil, "a first one again")

	var states []string
	for _, ch := range c.Changes() {
		states = append(states, ch.State)
		require.Equal(t, ch.State == device.StateOpen, ch.Why != "")
		require.False(t, ch.Hung)
	}
	require.Equal(t, []string{device.StateOpen, device.StateHalfOpen, device.StateOpen, device.StateHalfOpen, device.StateOpen}, states[:5])
	require.Empty(t, c.Changes())
}

func TestBreakerOpensOnAFractionOfFaults(t *testing.T) {
	for name, c := range map[string]struct {
		good, bad int // in turn
		every     time.Duration
		open      bool
	}{
		"half":             {1, 1, 100 * time.Millisecond, true},
		"a third":          {2, 1, 100 * time.Millisecond, false},
		"half, but few":    {1, 1, 2 * time.Second, false},
		"two thirds":       {1, 2, 100 * time.Millisecond, true},
		"two thirds, slow": {1, 2, 400 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newClock(t, BreakerConfig{})
			for range 50 {
				for range c.good {
					k.request(OK, c.every)
				}
				for range c.bad {
					k.request(Fault, c.every)
				}
			}
			opened := false
			for _, ch := range k.Changes() {
				opened = opened || ch.State == device.StateOpen
			}
			require.Equal(t, c.open, opened)
		})
	}
}

// Old requests do not count towards the fraction of faults.
func TestBreakerForgets(t *testing.T) {
	c := newClock(t, BreakerConfig{})
	for range 9 {
		c.requests(1, OK, 10*time.Millisecond)
		c.requests(1, Fault, 10*time.Millisecond)
	}
	c.now = c.now.Add(65 * time.Second)
	for range 9 {
		c.requests(1, OK, 10*time.Millisecond)
		c.requests(1, Fault, 10*time.Millisecond)
	}
	require.Equal(t, device.StateClosed, c.state())
	c.requests(1, OK, 10*time.Millisecond)
	c.requests(1, Fault, 10*time.Millisecond)
	require.Equal(t, device.StateOpen, c.state())
}

// A device that fails at once looks idle.
func TestBreakerOpensSoonerForFastFaults(t *testing.T) {
	c := newClock(t, BreakerConfig{})
	c.requests(10, OK, 100*time.Millisecond)
	c.CheckHang(c.now, 100*time.Millisecond)
	c.requests(2, Fault, time.Millisecond)
	c.requests(2, Fault, 90*time.Millisecond)
	require.Equal(t, device.StateClosed, c.state())
	c.requests(1, OK, time.Millisecond)
	c.requests(3, Fault, time.Millisecond)
	require.Equal(t, device.StateOpen, c.state())
	require.Contains(t, c.Health(c.now).Why, "3 consecutive faults")
}

func TestBreakerDetectsHangs(t *testing.T) {
	c := newClock(t, BreakerConfig{})
	const usual = 100 * time.Millisecond
	c.requests(10, OK, usual)
	c.now = c.now.Add(time.Hour)
	c.CheckHang(c.now, usual)
	require.Equal(t, device.StateClosed, c.state(), "it was idle")
	start := c.now
	for range 4 {
		c.Started(c.now)
	}
	c.now = start.Add(19 * usual)
	c.CheckHang(c.now, usual)
	require.Equal(t, device.StateClosed, c.state())
	c.CheckHang(start.Add(time.Hour), 0)
	require.Equal(t, device.StateClosed, c.state(), "the usual duration is unknown")
	c.now = start.Add(20 * usual)
	c.CheckHang(c.now, usual)
	require.Equal(t, device.StateOpen, c.state())
	require.Equal(t, "no request ended for 2s, the usual is 100ms", c.Health(c.now).Why)
	require.Equal(t, []Change{{At: c.now, State: device.StateOpen, Why: c.Health(c.now).Why, Hung: true}}, c.Changes())
	require.False(t, c.Allow(c.now))

	c.now = c.now.Add(5 * time.Second) // its test hangs as well
	require.True(t, c.Allow(c.now))
	c.Started(c.now)
	c.now = c.now.Add(20 * usual)
	c.CheckHang(c.now, usual)
	require.Equal(t, device.StateOpen, c.state())
	require.Equal(t, 2, c.Health(c.now).Opened)
	require.Equal(t, c.now.Add(10*time.Second), c.Health(c.now).OpenUntil)

	c.Ended(c.now, TimedOut, c.now.Sub(start)) // is no life
	require.Equal(t, device.StateOpen, c.state())
	c.Ended(c.now, OK, c.now.Sub(start))
	require.Equal(t, device.StateHalfOpen, c.state(), "one of the first requests was only slow")
	require.Equal(t, 1, c.Health(c.now).Opened)
	c.requests(1, OK, usual)
	require.Equal(t, device.StateClosed, c.state())
	c.now = c.now.Add(time.Hour)
	c.CheckHang(c.now, usual)
	require.Equal(t, device.StateClosed, c.state(), "requests that still hang were counted before")
}

// A device does not hang while requests end.
func TestBreakerStaysClosedWhileRequestsEnd(t *testing.T) {
	c := newClock(t, BreakerConfig{})
	c.Started(c.now)
	for range 200 {
		c.now = c.now.Add(time.Millisecond)
		c.requests(1, OK, 999*time.Millisecond)
		c.CheckHang(c.now, 100*time.Millisecond)
	}
	require.Equal(t, device.StateClosed, c.state())
	c.now = c.now.Add(2 * time.Second)
	c.CheckHang(c.now, 100*time.Millisecond)
	require.Equal(t, device.StateOpen, c.state())
}

// Requests that began before the breaker opened decide nothing.
func TestBreakerIgnoresEarlierRequests(t *testing.T) {
	c := newClock(t, BreakerConfig{Faults: 1})
	old := c.now
	c.Started(old)
	c.Started(old)
	c.now = c.now.Add(time.Second)
	c.requests(1, Fault, time.Millisecond)
	require.Equal(t, device.StateOpen, c.state())
	c.Ended(c.now, OK, c.now.Sub(old))
	require.Equal(t, device.StateOpen, c.state())
	c.now = c.Health(c.now).OpenUntil
	require.True(t, c.Allow(c.now))
	c.Started(c.now)
	c.Ended(c.now, OK, c.now.Sub(old))
	require.Equal(t, device.StateHalfOpen, c.state(), "the other one is the probe")
	c.Ended(c.now.Add(time.Second), OK, time.Second)
	require.Equal(t, device.StateClosed, c.state())
}

func TestBreakerJitterLengthensTheOpenTime(t *testing.T) {
	c := newClock(t, BreakerConfig{Faults: 1, Jitter: func() float64 { return 0.5 }})
	c.requests(1, Fault, time.Millisecond)
	require.Equal(t, c.now.Add(5500*time.Millisecond), c.Health(c.now).OpenUntil)
}

// Invariants: nothing starts while open, one request at a time while half-open, an open
// breaker becomes half-open, its time is bounded, and so is what is remembered.
func TestBreakerInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := BreakerConfig{Faults: rapid.IntRange(1, 5).Draw(t, "faults"), MaxOpen: time.Minute}
		c := newClock(t, cfg)
		var running []time.Time
		tests := map[time.Time]bool{}
		last := ""
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			c.now = c.now.Add(time.Duration(rapid.Int64Range(1, int64(3*time.Second)).Draw(t, "later")))
			state := c.state()
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				allowed := c.Allow(c.now)
				switch state {
				case device.StateOpen:
					require.False(t, allowed)
				case device.StateHalfOpen:
					require.Equal(t, len(tests) == 0, allowed)
				default:
					require.True(t, allowed)
				}
				if allowed {
					c.Started(c.now)
					running = append(running, c.now)
					if state == device.StateHalfOpen {
						tests[c.now] = true
					}
				}
			case 2, 3:
				if len(running) > 0 {
					i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
					began := running[i]
					running = append(running[:i], running[i+1:]...)
					delete(tests, began)
					c.Ended(c.now, Outcome(rapid.IntRange(0, int(Neutral)).Draw(t, "outcome")), c.now.Sub(began))
				}
			default:
				c.CheckHang(c.now, 100*time.Millisecond)
			}
			h := c.Health(c.now)
			if h.State != device.StateHalfOpen {
				clear(tests)
			}
			if h.State == device.StateOpen {
				require.True(t, h.OpenUntil.After(c.now))
				require.LessOrEqual(t, h.OpenUntil.Sub(c.now), time.Minute)
				require.NotEmpty(t, h.Why)
				require.Positive(t, h.Opened)
			} else {
				require.True(t, h.OpenUntil.IsZero())
				require.Empty(t, h.Why)
			}
			if last == device.StateOpen && h.State != device.StateOpen {
				require.Equal(t, device.StateHalfOpen, h.State, "never from open to closed")
			}
			last = h.State
			require.Len(t, c.running, len(running))
			require.LessOrEqual(t, len(c.changes), maxChanges)
		}
	})
}

func BenchmarkBreakerRequest(b *testing.B) {
	c := newClock(b, BreakerConfig{})
	for b.Loop() {
		c.request(OK, time.Millisecond)
	}
}

// Routers may probe before the open time is over, but not before the shortest.
func TestBreakerAllowsAnEarlyProbe(t *testing.T) {
	c := newClock(t, BreakerConfig{Open: 5 * time.Second})
	const took = 100 * time.Millisecond
	probe := func(o Outcome) bool {
		if !c.StartProbe(c.now) {
			return false
		}
		require.False(t, c.StartProbe(c.now), "one at a time")
		c.now = c.now.Add(took)
		c.Ended(c.now, o, took)
		return true
	}
	for c.state() == device.StateClosed {
		c.requests(1, Fault, took)
	}
	c.now = c.Health(c.now).OpenUntil
	require.True(t, c.request(Fault, took))
	h := c.Health(c.now)
	require.Equal(t, c.now.Add(10*time.Second), h.OpenUntil, "the second time")
	began := c.now
	c.now = began.Add(5*time.Second - 1)
	require.False(t, probe(OK))
	c.now = began.Add(5 * time.Second)
	require.False(t, c.Allow(c.now), "others wait")
	require.True(t, probe(Fault))
	require.Equal(t, device.StateOpen, c.state())
	c.now = c.now.Add(5 * time.Second)
	require.True(t, probe(OK))
	require.NotEqual(t, device.StateOpen, c.state(), "it has recovered")
}
