package policy

import (
	"cmp"
	"math"
	"slices"
)

// expectedFinish takes the option with which the task is expected to finish first, including the delay
// it causes for the tasks behind it. There are three options, where s is the service time of a task
// on a device, n its slots, u the tasks it has (credits, which are known exactly), and h the dispatch
// latency:
//
//	start now    on the fastest device with a free slot:   h + s
//	wait here    until the first faster device is free:    f·(k·r + 1)/R + h + N/R
//	bind ahead   behind the tasks of a busy device:        max(h, (u − n + 1)·s/n) + s
//
// k tasks wait in front of this one in each of r routers. The faster devices free their N slots at
// the rate R = Σ n/s, each taking N/R on average. So a slow device is left out as long as waiting for
// a fast one finishes sooner, and gets its share once the queue is long. This is a threshold policy,
// which is optimal for two servers (Lin and Kumar 1984).
//
// With f = 1 every task would do what is best for itself, which is bad for all of them: a task that
// waits delays every task that arrives before the queue is empty. In a queue with arrival rate λ one
// more task costs (k + 1)/(R − λ), which is f = 1/(1 − λ/R). The two constants stand for a busy fleet, where
// it matters. Between half and twice their value the mean changes by a few percent (docs/routing.md).
//
// Heartbeats are up to 5 s old; they only decide which devices are candidates.
type expectedFinish struct{}

// Factors f of the queue in front of a task that waits here.
const (
	againstSlow  = 8.0 // when a slower device could start it now
	againstAhead = 3.0 // when it could be bound ahead
)

func (*expectedFinish) Name() string    { return "expected_finish" }
func (*expectedFinish) BindsLate() bool { return true }
func (*expectedFinish) Unit() string    { return "ms" }

// bySpeed is the candidates from fast to slow.
type bySpeed struct {
	order    []int32
	service  []float64 // in ms, including the network time; in that order, like the next two
	speed    []float64 // 1/service
	loads    []*Load   // close together in memory: a long queue looks at all of them
	probeDue []int32   // candidates that were due for a probe when the fleet was read
}

// serviceOf is the time of one task on the device, in ms.
func serviceOf(c *Candidate) float64 { return millis(cmp.Or(c.Service, UnknownService) + c.Latency) }

// speeds sorts the candidates once per generation.
func speeds(s *Snapshot) *bySpeed {
	if m, ok := s.Cache.(*bySpeed); ok {
		return m
	}
	n := len(s.Candidates)
	m := &bySpeed{order: make([]int32, n), service: make([]float64, n), speed: make([]float64, n), loads: make([]*Load, n)}
	for i := range m.order {
		m.order[i] = int32(i) //nolint:gosec // devices.max_devices bounds it
		if s.Candidates[i].ProbeDue {
			m.probeDue = append(m.probeDue, m.order[i])
		}
	}
	slices.SortFunc(m.order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(serviceOf(&s.Candidates[a]), serviceOf(&s.Candidates[b])), cmp.Compare(a, b))
	})
	for k, i := range m.order {
		m.service[k], m.loads[k] = serviceOf(&s.Candidates[i]), s.Candidates[i].Load
		m.speed[k] = 1 / m.service[k]
	}
	s.Cache = m
	return m
}

func (p *expectedFinish) Pick(r *Request, s *Snapshot) Choice {
	m := speeds(s)
	dispatch := millis(s.DispatchLatency)
	choice := Choice{Index: Wait}
	for _, i := range m.probeDue {
		if c := &s.Candidates[i]; c.ProbeDue && c.Used < min(c.Slots, c.Limit) {
			choice.Index, choice.Why = int(i), "its measurements are old"
			choice.consider(int(i), dispatch+serviceOf(c))
			return choice
		}
	}
	routers := float64(max(1, s.Routers))
	queue := float64(r.Ahead)*routers + 1
	enough := math.Inf(1)   // the queue length at which the answer changes
	slots, rate := 0.0, 0.0 // of the faster devices, all busy: N and R
	ahead, aheadAt, faster := Wait, 0.0, 0
	for k, i := range m.order {
		c, service := m.loads[k], m.service[k]
		if c.Used < min(c.Slots, c.Limit) {
			choice.consider(int(i), dispatch+service)
			// Worth it when s + h ≤ f·queue/R + h + N/R.
			if enough = (service*rate - slots) / againstSlow; queue >= enough {
				choice.Index, choice.Why = int(i), "it can start at once"
				return choice
			}
			break
		}
		n := float64(max(1, c.Slots))
		if c.Used < c.Limit {
			at := max(dispatch, (float64(c.Used)-n+1)*service/n) + service
			choice.consider(int(i), at)
			if ahead == Wait || at < aheadAt {
				ahead, aheadAt = int(i), at
			}
		}
		slots, rate = slots+n, rate+n*m.speed[k]
		faster++
	}
	if ahead != Wait {
		bind := m.queueFor(aheadAt-dispatch, faster)
		if queue >= bind {
			choice.Index, choice.Why = ahead, "it is bound ahead, to start as soon as a slot is free"
			return choice
		}
		enough = min(enough, bind)
	}
	choice.Defer = !math.IsInf(enough, 1)
	if choice.Defer {
		choice.DeferWhileAheadBelow = int(min((enough-1)/routers, math.MaxInt32)) + 1
		choice.Why = "a faster device is worth waiting for"
	}
	return choice
}

// queueFor is the queue length at which waiting for one of the first `faster` devices, and running
// there, takes the given time or longer: the maximum of (t·R − N)/f over the devices whose service
// time is below it.
func (m *bySpeed) queueFor(t float64, faster int) float64 {
	slots, rate := 0.0, 0.0
	for k, l := range m.loads[:faster] {
		if m.service[k] >= t {
			break
		}
		n := float64(max(1, l.Slots))
		slots, rate = slots+n, rate+n*m.speed[k]
	}
	return (t*rate - slots) / againstAhead
}
