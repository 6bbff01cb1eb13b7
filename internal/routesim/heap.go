package routesim

// kind says what happens in an event.
type kind uint8

const (
	evArrive  kind = iota // a task comes
	evReach               // a task reaches its device
	evEnd                 // a request ends
	evAgain               // a task is to be tried on its device once more
	evAsk                 // the routers ask what is in use of pool i, which got room
	evNews                // they hear it: gen
	evLog                 // a task is in its router's log again
	evUnpark              // a parked task's time has come
	evWake                // router i wants to be called
	evFleet               // router i reads Redis
	evBeat                // device i sends a heartbeat
	evReport              // the workers report what they learned
	evRenew               // the leases that are held are renewed
	evFault               // device i changes its ways
	evMeasure             // the warm-up is over, or the measured time
)

// event is something that happens at a moment of virtual time.
type event struct {
	at   int64  // ns since the beginning
	seq  uint64 // events of one moment happen in the order in which they were made
	job  *job
	gen  uint32 // of the job's attempt, or of the router's timer: an older one counts no more
	i    int32
	kind kind
}

// heap4 is a heap of four branches: it is flatter than a binary one, and events
// are small enough to be compared where they lie.
type heap4 struct {
	es  []event
	seq uint64
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (h *heap4) push(e event) {
	h.seq++
	e.seq = h.seq
	h.es = append(h.es, e)
	i := len(h.es) - 1
	for i > 0 {
		p := (i - 1) / 4
		if !before(&e, &h.es[p]) {
			break
		}
		h.es[i] = h.es[p]
		i = p
	}
	h.es[i] = e
}

func (h *heap4) pop() event {
	top := h.es[0]
	n := len(h.es) - 1
	e := h.es[n]
	h.es[n] = event{}
	h.es = h.es[:n]
	if n == 0 {
		return top
	}
	i := 0
	for {
		c := 4*i + 1
		if c >= n {
			break
		}
		least := c
		for k := c + 1; k < min(c+4, n); k++ {
			if before(&h.es[k], &h.es[least]) {
				least = k
			}
		}
		if !before(&h.es[least], &e) {
			break
		}
		h.es[i] = h.es[least]
		i = least
	}
	h.es[i] = e
	return top
}

// fifo is a queue that reuses its room.
type fifo struct {
	js   []*job
	head int
}

func (q *fifo) len() int { return len(q.js) - q.head }

func (q *fifo) push(j *job) { q.js = append(q.js, j) }

func (q *fifo) first() *job { return q.js[q.head] }

// pushFront puts a task before the others.
func (q *fifo) pushFront(j *job) {
	if q.head > 0 {
		q.head--
		q.js[q.head] = j
		return
	}
	q.js = append(q.js, nil)
	copy(q.js[1:], q.js)
	q.js[0] = j
}

func (q *fifo) pop() *job {
	j := q.js[q.head]
	q.js[q.head] = nil
	q.head++
	if q.head > 64 && 2*q.head > len(q.js) {
		n := copy(q.js, q.js[q.head:])
		clear(q.js[n:])
		q.js, q.head = q.js[:n], 0
	}
	return j
}
