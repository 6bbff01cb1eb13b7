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
	// Those that have waited longest come first.
	for _, h := range slices.SortedFunc(maps.Keys(s.silent), func(x, y string) int { return s.silent[x].until.Compare(s.silent[y].until) }) {
		wait := s.silent[h].until.Sub(now)
		switch {
		case s.hosts[h] > 0:
			r.hosts[h] = 0
		case wait > 0:
			r.hosts[h] = 0
			if r.wake == 0 || wait < r.wake {
				r.wake = wait
			}
		case left > 0:
			r.hosts[h] = 1
			left--
		default:
			r.hosts[h] = 0
		}
	}
	return r
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
		if c.silent = s.silent[c.host] != nil; c.silent {
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
		s.silent[host] = &silence{pause, now.Add(pause)}
	}
}

func release(running map[string]int, name string) {
	if running[name]--; running[name] == 0 {
		delete(running, name)
	}
}
