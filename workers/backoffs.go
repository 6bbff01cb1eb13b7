package workers

import (
	"sync"
	"time"
)

// backoffs holds work between two attempts on the same device. A timer submits each piece again.
// When the worker stops, all of it is taken out at once.
type backoffs struct {
	mu     sync.Mutex
	timers map[*work]backoffTimer
	closed bool
}

// backoffTimer is a timer, and when it fires.
type backoffTimer struct {
	*time.Timer
	due time.Time
}

func newBackoffs() *backoffs { return &backoffs{timers: map[*work]backoffTimer{}} }

// add waits for d and then puts the work in front of the runner's queue. It returns false when the
// worker is stopping.
func (p *backoffs) add(d time.Duration, r *runner, w *work) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.timers[w] = backoffTimer{due: time.Now().Add(d), Timer: time.AfterFunc(d, func() {
		p.mu.Lock()
		_, mine := p.timers[w]
		delete(p.timers, w)
		p.mu.Unlock()
		if mine { // else close or drop has taken it
			r.resubmit(&call{works: []*work{w}})
		}
	})}
	return true
}

// close takes everything out and refuses more.
func (p *backoffs) close() []*work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	out := make([]*work, 0, len(p.timers))
	for w, t := range p.timers {
		t.Stop()
		out = append(out, w)
	}
	clear(p.timers)
	return out
}

// drop takes one piece of work out. It returns false when the work is not waiting here.
func (p *backoffs) drop(w *work) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.timers[w]
	if ok {
		t.Stop()
		delete(p.timers, w)
	}
	return ok
}
