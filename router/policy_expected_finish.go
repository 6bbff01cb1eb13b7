package router

import (
	"cmp"
	"math"
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
//	wait here    for the first faster device to be free:  f·(k·r + 1)/R + h + N/R
//	bind ahead   behind the tasks of a busy device:       max(h, (u − n + 1)·s/n) + s
//
// k tasks wait before this one in each of r routers, and the faster
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
	againstSlow  = 8.0 // when a slower device could start it now
	againstAhead = 3.0 // when it could be bound ahead
)

func (*expectedFinish) Name() string { return "expected_finish" }
func (*expectedFinish) Late() bool   { return true }
func (*expectedFinish) Unit() string { return "ms" }

// bySpeed is the candidates from fast to slow.
type bySpeed struct {
	order   []int32
	service []float64 // in ms, network time included; in that order, like the next two
	speed   []float64 // 1/service
	loads   []*Load   // side by side in memory: a deep queue looks at all of them
	stale   []int32   // candidates of which nothing was heard for long
}

// serviceOf is the time of one task on the device, in ms.
func serviceOf(c *Candidate) float64 { return ms(cmp.Or(c.Service, unknownService) + c.Latency) }

func speeds(f *Field) *bySpeed {
	if m, ok := f.Memo.(*bySpeed); ok {
		return m
	}
	n := len(f.Cands)
	m := &bySpeed{order: make([]int32, n), service: make([]float64, n), speed: make([]float64, n), loads: make([]*Load, n)}
	for i := range m.order {
		m.order[i] = int32(i) //nolint:gosec // devices.max_devices bounds it
		if f.Cands[i].Explore {
			m.stale = append(m.stale, m.order[i])
		}
	}
	slices.SortFunc(m.order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(serviceOf(&f.Cands[a]), serviceOf(&f.Cands[b])), cmp.Compare(a, b))
	})
	for k, i := range m.order {
		m.service[k], m.loads[k] = serviceOf(&f.Cands[i]), f.Cands[i].Load
		m.speed[k] = 1 / m.service[k]
	}
	f.Memo = m
	return m
}

func (p *expectedFinish) Pick(r *Request, f *Field) Choice {
	speed := speeds(f)
	hop := ms(f.Hop)
	choice := Choice{Index: Wait}
	for _, i := range speed.stale {
		if c := &f.Cands[i]; c.Explore && c.Used < min(c.Slots, c.Limit) {
			choice.Index, choice.Note = int(i), "nothing was heard of it for long"
			choice.note(int(i), hop+serviceOf(c))
			return choice
		}
	}
	routers := float64(max(1, f.Routers))
	queue := float64(r.Ahead)*routers + 1
	enough := math.Inf(1)   // the queue at which the choice would be another
	slots, rate := 0.0, 0.0 // of the faster devices, all busy: N and R
	ahead, aheadAt, passed := Wait, 0.0, 0
	for k, i := range speed.order {
		c, s := speed.loads[k], speed.service[k]
		if c.Used < min(c.Slots, c.Limit) {
			choice.note(int(i), hop+s)
			// Worth it when s + h ≤ f·queue/R + h + N/R.
			if enough = (s*rate - slots) / againstSlow; queue >= enough {
				choice.Index, choice.Note = int(i), "it can start at once"
				return choice
			}
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
		slots, rate = slots+n, rate+n*speed.speed[k]
		passed++
	}
	if ahead != Wait {
		bind := speed.queueFor(aheadAt-hop, passed)
		if queue >= bind {
			choice.Index, choice.Note = ahead, "it is bound ahead, to start when a slot is free"
			return choice
		}
		enough = min(enough, bind)
	}
	choice.Held = !math.IsInf(enough, 1)
	if choice.Held {
		choice.Until = int(min((enough-1)/routers, math.MaxInt32)) + 1
		choice.Note = "a faster device is worth waiting for"
	}
	return choice
}

// queueFor is the queue at which waiting for the first of the passed devices to
// be free, and running there, takes the given time or longer: the largest of
// (t·R − N)/f over those whose service time is below it.
func (m *bySpeed) queueFor(t float64, passed int) float64 {
	slots, rate := 0.0, 0.0
	for k, l := range m.loads[:passed] {
		if m.service[k] >= t {
			break
		}
		n := float64(max(1, l.Slots))
		slots, rate = slots+n, rate+n*m.speed[k]
	}
	return (t*rate - slots) / againstAhead
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
