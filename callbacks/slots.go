package callbacks

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Pauses of a host that times out: the first, and the longest.
const (
	firstSilence = time.Second
	lastSilence  = 5 * time.Minute
)

// maxSilent bounds the hosts that are remembered as silent.
const maxSilent = 10_000

// slots are the deliveries that may run at the same time in this process. They are limited in total, per host
// and per tenant, so that no host and no tenant delays another. A host that timed out is silent: it gets one
// delivery at a time, after pauses that double, until it answers; and all silent hosts together get a quarter of
// the slots. So even many tenants with many dead hosts take slots from others for one timeout only.
//
// Of these slots, silent hosts that had a callback at their last turn go before those that had none: nothing
// may be left for such a host, because another process delivered it, and it must not take the turn of others.
//
// All of this is forgotten when the process ends.
type slots struct {
	cfg Config
	now func() time.Time

	mu            sync.Mutex
	total         int
	moved         time.Time      // when a delivery began or ended
	hosts         map[string]int // running deliveries
	tenants       map[string]int
	silent        map[string]*silence
	silentRunning int
}

// silence is how long a host has not answered.
type silence struct {
	pause time.Duration
	until time.Time
	idle  time.Time // since when no callback was found for it; zero: one was
}

// before reports whether the turn of a silent host comes before that of another.
func (q *silence) before(other *silence) int {
	if a, b := q.idle.IsZero(), other.idle.IsZero(); a != b {
		if a {
			return -1
		}
		return 1
	}
	return q.until.Compare(other.until) // those that have waited longest come first
}

func newSlots(cfg Config) *slots {
	return &slots{cfg: cfg, now: time.Now, moved: time.Now(), hosts: map[string]int{}, tenants: map[string]int{}, silent: map[string]*silence{}}
}

// room is what a claim may take.
type room struct {
	free    int            // slots
	hosts   map[string]int // slots of hosts that have fewer than usual; 0: none
	tenants map[string]int // the same of tenants
	wake    time.Duration  // until a host without room has some; 0: when a delivery ends
	tried   []string       // the silent hosts whose turn it is
	crowded bool           // it is not the turn of all silent hosts whose pauses are over
}

// full returns the names that have no room.
func full(rooms map[string]int) []string {
	out := []string{}
	for name, n := range rooms {
		if n <= 0 {
			out = append(out, name)
		}
	}
	return out
}

// room returns what the next claim may take.
func (s *slots) room() room {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := room{free: s.cfg.Concurrency - s.total, hosts: map[string]int{}, tenants: map[string]int{}}
	for t, n := range s.tenants {
		r.tenants[t] = s.cfg.PerTenant - n
	}
	for h, n := range s.hosts {
		r.hosts[h] = s.cfg.PerHost - n
	}
	now, left := s.now(), max(1, s.cfg.Concurrency/4)-s.silentRunning
	for _, h := range slices.SortedFunc(maps.Keys(s.silent), func(x, y string) int { return s.silent[x].before(s.silent[y]) }) {
		wait := s.silent[h].until.Sub(now)
		r.hosts[h] = 0
		switch {
		case s.hosts[h] > 0:
			continue
		case wait <= 0 && left > 0:
			r.hosts[h], r.tried = 1, append(r.tried, h)
			left--
			continue
		case wait <= 0:
			r.crowded = true
			wait = turnOfIdle
		}
		if r.wake == 0 || wait < r.wake {
			r.wake = wait
		}
	}
	return r
}

// turnOfIdle is after how long the next silent hosts have their turn, if those that had theirs had no callbacks.
const turnOfIdle = time.Second

// looked notes for which of the silent hosts whose turn it was a claim found callbacks. It reports whether it is the
// turn of others now.
func (s *slots) looked(r room, claimed []*callback) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, h := range r.tried {
		q := s.silent[h]
		switch {
		case q == nil || slices.ContainsFunc(claimed, func(c *callback) bool { return c.host == h }):
		case q.idle.IsZero():
			q.idle, q.until = now, now
			again = r.crowded
		case now.Sub(q.idle) > lastSilence:
			delete(s.silent, h)
		default:
			q.until = now
		}
	}
	return again
}

// take takes slots for claimed callbacks, and returns how many are taken now.
func (s *slots) take(claimed []*callback) (total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = time.Now()
	for _, c := range claimed {
		s.total++
		s.hosts[c.host]++
		s.tenants[c.tenant]++
		if q := s.silent[c.host]; q != nil {
			c.silent, q.idle = true, time.Time{}
			s.silentRunning++
		}
	}
	return s.total
}

// free gives the slot of a callback back, and returns how many are taken now. timedOut says how the host did.
func (s *slots) free(c *callback, timedOut bool) (total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = time.Now()
	s.total--
	release(s.hosts, c.host)
	release(s.tenants, c.tenant)
	if c.silent {
		s.silentRunning--
	}
	switch have := s.silent[c.host]; {
	case !timedOut:
		delete(s.silent, c.host)
	case have == nil:
		s.silence(c.host, firstSilence)
	case c.silent: // the others began before the host was known to be silent
		s.silence(c.host, min(2*have.pause, lastSilence))
	}
	return s.total
}

// lastMove returns when a delivery began or ended.
func (s *slots) lastMove() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// silence remembers that a host timed out. If there are too many such hosts, those are forgotten first whose
// pauses ended long ago, because they have no callbacks any more.
func (s *slots) silence(host string, pause time.Duration) {
	now := s.now()
	if len(s.silent) >= maxSilent {
		maps.DeleteFunc(s.silent, func(_ string, q *silence) bool { return now.Sub(q.until) > lastSilence })
	}
	if len(s.silent) < maxSilent || s.silent[host] != nil {
		s.silent[host] = &silence{pause: pause, until: now.Add(pause)}
	}
}

func release(running map[string]int, name string) {
	if running[name]--; running[name] == 0 {
		delete(running, name)
	}
}
