package workers

import (
	"sync"
	"time"
)

// pauses holds work between two attempts on the same device. A timer wakes each
// piece; when the worker stops, what still pauses is taken out at once.
type pauses struct {
	mu     sync.Mutex
	m      map[*work]*time.Timer
	closed bool
}

func newPauses() *pauses { return &pauses{m: map[*work]*time.Timer{}} }

// add lets the work pause, then queues it in front of its runner; false when
// the worker stops.
func (p *pauses) add(d time.Duration, r *runner, w *work) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.m[w] = time.AfterFunc(d, func() {
		p.mu.Lock()
		_, mine := p.m[w]
		delete(p.m, w)
		p.mu.Unlock()
		if mine { // else close has taken it
			r.resubmit(&call{works: []*work{w}})
		}
	})
	return true
}

// close takes out everything and refuses more.
func (p *pauses) close() []*work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	out := make([]*work, 0, len(p.m))
	for w, t := range p.m {
		t.Stop()
		out = append(out, w)
	}
	clear(p.m)
	return out
}

// drop takes one piece out, so that it ends at once.
func (p *pauses) drop(w *work) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.m[w]
	if ok {
		t.Stop()
		delete(p.m, w)
	}
	return ok
}
