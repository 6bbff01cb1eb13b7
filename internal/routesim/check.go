package routesim

import "time"

// checkPlaces checks that every task that has not ended is in exactly one place,
// and that every place holds as many tasks as it says.
func (s *sim) checkPlaces() {
	var at [ended + 1]int
	credits := make([]int, len(s.machines))
	leases := map[string]int{}
	live := 0
	for _, j := range s.jobs {
		if j == nil {
			continue
		}
		live++
		at[j.where]++
		if j.lease != "" {
			credits[j.device]++
			leases[j.lease]++
		}
	}
	outside, windows, queued, busy := 0, 0, 0, 0
	for _, n := range s.nodes {
		windows += n.decider.Len()
		for i := range n.logs {
			outside += n.logs[i].q.len()
		}
	}
	for i, m := range s.machines {
		queued += m.queue.len()
		busy += m.running + m.hung
		if used := s.acct.used[m.pool]; used != credits[i] {
			s.fail("credits: %d of %s are in use, but %d tasks hold one", used, m.pool, credits[i])
		}
	}
	for id, l := range s.acct.leases {
		if leases[id] != l.n {
			s.fail("credits: lease %s of %s has %d, but %d tasks hold one of them", id, l.pool, l.n, leases[id])
		}
	}
	switch {
	case live != s.live || at[ended] > 0:
		s.fail("conservation: %d tasks exist, but %d have not ended", live, s.live)
	case at[inWindow] != windows || at[atDevice] != queued || at[running] != busy || at[inLog] < outside:
		s.fail("conservation: of %d tasks, %d should be in windows (%d are), %d in queues (%d), %d running (%d), %d in the log (%d)",
			live, at[inWindow], windows, at[atDevice], queued, at[running], busy, at[inLog], outside)
	}
}

// checkEnd checks what must hold once all tasks have ended.
func (s *sim) checkEnd() {
	if s.live != 0 {
		s.fail("conservation: %d tasks have not ended, but there are no more events", s.live)
		return
	}
	for _, n := range s.nodes {
		if n.decider.Len() != 0 || n.held != 0 {
			s.fail("conservation: router %s holds %d tasks that have ended", n.name, n.decider.Len())
		}
	}
	for _, m := range s.machines {
		if m.running+m.hung+m.busy != 0 || m.queue.len() != 0 {
			s.fail("conservation: %s has %d requests and %d tasks that have ended", m.spec.ID, m.running, m.queue.len())
		}
		if n := s.acct.used[m.pool]; n != 0 {
			s.fail("credits: %d of %s are in use, but all tasks have ended", n, m.pool)
		}
	}
}

// workConserving are the policies that promise never to leave a slot idle while a
// task that could use it is waiting.
var workConserving = map[string]bool{
	"fifo": true, "priority": true,
}

// checkWork checks that a work-workConserving policy has not left idle a slot that its
// router knows to be free.
func (n *node) checkWork() {
	s := n.s
	if s.bad != nil || !workConserving[s.setup.Policy] || len(s.nodes) > 1 || len(s.setup.Faults) > 0 || s.now < s.from || s.now < n.rests+int64(2*time.Millisecond) || n.decider.Len() == 0 {
		return
	}
	for i, m := range s.machines {
		if n.view[i] < m.spec.Slots && s.now > m.recoversAt {
			s.fail("work conservation: %d tasks wait at router %s and %d of %d slots of %s have none", n.decider.Len(), n.name, m.spec.Slots-n.view[i], m.spec.Slots, m.spec.ID)
			return
		}
	}
}
