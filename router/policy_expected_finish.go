package router

import (
	"fmt"
	"time"
)

// unknownService is assumed of a device that has not answered anything of this
// model yet: short, so that it is tried soon and then known.
const unknownService = 10 * time.Millisecond

// expectedFinish takes the device where the task is expected to end first:
//
//	finish = hop + latency + service × ceil(in front + 1, slots) ÷ slots-share
//
// With u tasks on the device (credits, known exactly now) and s slots, a task
// that finds a free slot ends after one service time; one that does not waits
// for (u − s + 1)/s further service times on average. Heartbeats are up to 5 s
// old and serve as filter only.
//
// When the best device has no free credit the task waits for it rather than
// going to one where it would end later: a slow device is left out as long as
// waiting for a fast one ends sooner. Tasks that wait count as in front of the
// next, so a slow device gets its share once the queue in front of the fast
// ones is long enough.
type expectedFinish struct{ hop time.Duration }

func (*expectedFinish) Name() string { return "expected_finish" }

func (p *expectedFinish) Pick(_ time.Time, cs []Candidate) Choice {
	best, bestAt := Wait, time.Duration(0)
	for i := range cs {
		at := p.finish(&cs[i])
		if best == Wait || at < bestAt || (at == bestAt && cs[i].LastPick < cs[best].LastPick) {
			best, bestAt = i, at
		}
	}
	if best == Wait {
		return Choice{Index: Wait, For: Wait}
	}
	if cs[best].Free() == 0 || cs[best].Waiting > 0 {
		// Worth waiting for. (Waiting > 0: others of this round are in front.)
		return Choice{Index: Wait, For: best}
	}
	c := &cs[best]
	return Choice{Index: best, Why: fmt.Sprintf("expected finish %.1f ms: service %.1f ms, %d of %d slots busy, best of %d",
		ms(bestAt), ms(c.Service), min(c.Used, c.Slots), c.Slots, len(cs))}
}

func (p *expectedFinish) finish(c *Candidate) time.Duration {
	service := c.Service
	if service == 0 {
		service = unknownService
	}
	slots := max(1, c.Slots)
	at := p.hop + c.Latency + service
	if over := c.Used + c.Waiting - slots + 1; over > 0 {
		at += service * time.Duration(over) / time.Duration(slots)
	}
	return at
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
