package router

import (
	"cmp"
	"slices"
	"time"
)

// unknownService is assumed of a device that has not answered anything of this
// model yet: short, so that it is tried soon and then known.
const unknownService = 10 * time.Millisecond

// expectedFinish takes the way on which the task is expected to end first, what it
// costs those after it counted in. There are three, with s the service time of a
// task on a device, n its slots, u the tasks it has (credits, known exactly now),
// and h the hop to a device:
//
//	start now    on the fastest device with a free slot:  h + s
//	wait here    for the first faster device to be free:  f·(k + 1)·r/R + h + N/R
//	bind ahead   behind the tasks of a busy device:       max(h, (u − n + 1)·s/n) + s
//
// Waiting, k tasks go before this one in each of r routers, and the faster
// devices free their N slots at the rate R = Σ n/s, each then taking N/R on
// average. A slow device is so left out as long as waiting for a fast one ends
// sooner, and gets its share once the queue is long: a threshold policy, as is
// optimal for two servers (Lin and Kumar 1984).
//
// With f = 1 that would be best for each task by itself, and bad for all: one that
// waits delays every task that comes before the queue is empty. In a queue with
// arrivals λ the cost of one more is (k + 1)/(R − λ), f = 1/(1 − λ/R). The two
// constants stand for a fleet that is busy, where it matters; between half and
// twice of them the mean changes by a few per cent (docs/routing.md).
//
// Heartbeats are up to 5 s old and only say who is a candidate.
type expectedFinish struct{}

// Factors of the queue in front of a task that waits here.
const (
	againstSlow  = 6.0 // when a slower device could start it now
	againstAhead = 2.0 // when it could be bound ahead
)

func (*expectedFinish) Name() string { return "expected_finish" }
func (*expectedFinish) Late() bool   { return true }
func (*expectedFinish) Unit() string { return "ms" }

// bySpeed is the candidates from fast to slow.
type bySpeed struct {
	order   []int32
	service []float64 // in ms, network time included; in that order
}

func speeds(f *Field) *bySpeed {
	if m, ok := f.Memo.(*bySpeed); ok {
		return m
	}
	m := &bySpeed{order: make([]int32, len(f.Cands)), service: make([]float64, len(f.Cands))}
	of := func(i int32) float64 {
		c := &f.Cands[i]
		return ms(cmp.Or(c.Service, unknownService) + c.Latency)
	}
	for i := range m.order {
		m.order[i] = int32(i) //nolint:gosec // devices.max_devices bounds it
	}
	slices.SortFunc(m.order, func(a, b int32) int { return cmp.Or(cmp.Compare(of(a), of(b)), cmp.Compare(a, b)) })
	for k, i := range m.order {
		m.service[k] = of(i)
	}
	f.Memo = m
	return m
}

func (p *expectedFinish) Pick(r *Request, f *Field) Choice {
	speed := speeds(f)
	hop := ms(f.Hop)
	queue := float64(r.Ahead+1) * float64(max(1, f.Routers))
	choice := Choice{Index: Wait}
	slots, rate := 0.0, 0.0 // of the faster devices, all busy: N and R
	ahead, aheadAt, busy := Wait, 0.0, 0.0
	for k, i := range speed.order {
		c, s := &f.Cands[i], speed.service[k]
		if c.Used < min(c.Slots, c.Limit) {
			choice.note(int(i), hop+s)
			switch {
			case c.Explore:
				choice.Index, choice.Note = int(i), "nothing was heard of it for long"
				return choice
			case rate == 0 || s <= againstSlow*queue/rate+slots/rate:
				choice.Index, choice.Note = int(i), "it can start at once"
				return choice
			}
			choice.Held = true
			break
		}
		n := float64(max(1, c.Slots))
		if c.Used < c.Limit {
			at := max(hop, (float64(c.Used)-n+1)*s/n) + s
			choice.note(int(i), at)
			if ahead == Wait || at < aheadAt {
				ahead, aheadAt = int(i), at
			}
		}
		slots, rate = slots+n, rate+n/s
		if w := againstAhead*queue/rate + hop + slots/rate; busy == 0 || w < busy {
			busy = w
		}
	}
	if ahead != Wait && aheadAt <= busy {
		choice.Index, choice.Held, choice.Note = ahead, false, "it is bound ahead, to start when a slot is free"
		return choice
	}
	choice.Held = choice.Held || ahead != Wait
	choice.Note = "a faster device is worth waiting for"
	return choice
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
