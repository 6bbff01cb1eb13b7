package router

import (
	"cmp"
	"container/heap"
	"context"
	"slices"
	"time"

	"github.com/batchyard/batchyard/device"
)

// pick is a task with the device that the policy chose for it.
type pick struct {
	item  *item
	state *state
	why   string
	lease string
	idle  int // slots of the device without work when it was picked
}

// plan chooses devices for up to RoundPicks tasks, best rank first over all
// classes. It takes the credits in its own books only; a class whose devices
// are all full is passed over without looking at its tasks one by one. more
// tells that it stopped at the bound and not for want of tasks or credits.
func (s *scheduler) plan(now time.Time) (picks []pick, more bool) {
	s.round++
	var heads classHeap
	for _, c := range s.window.classes {
		if c.ready.Len() > 0 {
			heads = append(heads, c)
		}
	}
	heap.Init(&heads)
	for _, p := range s.view.pools {
		p.waiting = 0
	}
	var held []*item
	// Tasks of one class that may decide to wait for a better device before the
	// class is passed over: the others are not to wait behind them.
	patience := max(32, 4*s.cfg.RoundPicks/max(1, len(heads)))
	for len(heads) > 0 && len(picks) < s.cfg.RoundPicks {
		c := heads[0]
		if c.round != s.round { // the fleet does not change within a round
			c.round, c.waits = s.round, 0
			c.states = s.view.candidates(c, now, c.states)
			c.unable = len(c.states) == 0
		}
		states := c.states
		free := slices.ContainsFunc(states, func(st *state) bool { p := st.pool(c.merged); return p.used < p.limit })
		if !free {
			heap.Pop(&heads)
			continue
		}
		it := c.pop()
		if it.rec.Lost() {
			s.window.remove(it)
			s.nextHead(&heads, c)
			continue
		}
		s.cands = s.view.describe(c, states, s.cands)
		choice := s.policy.Pick(now, s.cands)
		switch {
		case choice.Index != Wait:
			st := states[choice.Index]
			p := st.pool(c.merged)
			picks = append(picks, pick{item: it, state: st, why: choice.Why, idle: max(0, p.slots-p.used)})
			p.used++
			s.view.picks++
			st.lastPick = s.view.picks
		case choice.For != Wait:
			states[choice.For].pool(c.merged).waiting++
			held = append(held, it)
			if c.waits++; c.waits >= patience {
				heap.Pop(&heads)
				continue
			}
		default:
			held = append(held, it)
			heap.Pop(&heads)
			continue
		}
		s.nextHead(&heads, c)
	}
	for _, it := range held {
		s.window.back(it)
	}
	return picks, len(picks) == s.cfg.RoundPicks
}

// nextHead puts the class where its next task belongs.
func (s *scheduler) nextHead(heads *classHeap, c *class) {
	if c.ready.Len() == 0 {
		heap.Pop(heads)
		s.window.tidy(c)
		return
	}
	heap.Fix(heads, 0)
}

// take gets the credits for the picks, in one round trip, and returns the picks
// that got one; the others go back to the window, best rank kept.
func (s *scheduler) take(ctx context.Context, picks []pick) ([]pick, error) {
	wants := make([]device.Want, 0, 16)
	at := map[*pool]int{}
	for _, p := range picks {
		pl := p.state.pool(p.item.class.merged)
		i, ok := at[pl]
		if !ok {
			i = len(wants)
			at[pl] = i
			wants = append(wants, device.Want{Pool: pl.name, Limit: pl.limit})
		}
		wants[i].N++
	}
	grants, err := s.deps.Credits.Acquire(ctx, s.name, wants)
	if err != nil {
		for _, p := range picks {
			p.state.pool(p.item.class.merged).used--
			s.window.back(p.item)
		}
		return nil, err
	}
	left := make(map[string]*device.Grant, len(grants))
	for i := range grants {
		left[grants[i].Pool] = &grants[i]
		if pl := s.view.pools[grants[i].Pool]; pl != nil {
			pl.used = grants[i].Used
		}
	}
	got := picks[:0]
	for _, p := range picks {
		g := left[p.state.pool(p.item.class.merged).name]
		if g == nil || g.N == 0 {
			s.window.back(p.item)
			continue
		}
		g.N--
		p.lease = g.Lease
		got = append(got, p)
	}
	slices.SortStableFunc(got, func(a, b pick) int { return cmp.Compare(a.state.ID, b.state.ID) })
	return got, nil
}

// classHeap orders classes by the rank of their first task.
type classHeap []*class

func (h classHeap) Len() int           { return len(h) }
func (h classHeap) Less(i, j int) bool { return h[i].ready[0].rank < h[j].ready[0].rank }
func (h classHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *classHeap) Push(x any)        { *h = append(*h, x.(*class)) }
func (h *classHeap) Pop() any {
	old := *h
	n := len(old) - 1
	c := old[n]
	old[n] = nil
	*h = old[:n]
	return c
}
