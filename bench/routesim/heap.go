package routesim

// kind is what happens in an event.
type kind uint8

const (
	evArrive    kind = iota // a task arrives
	evReach                 // a task reaches its device
	evEnd                   // a request ends
	evRetryHere             // a task is retried on the same device
	evAsk                   // the routers query the credits in use of pool i, which has room
	evFreed                 // the routers learn the answer: gen
	evLog                   // a task is back in its router's log
	evWake                  // the timer of router i fires
	evFleet                 // router i reads Redis
	evHeartbeat             // device i sends a heartbeat
	evReport                // the workers report what they have learned
	evRenew                 // the leases in use are renewed
	evFault                 // fault i sets in
	evMeasure               // the measured time starts or ends
)

// event is something that happens at a point in virtual time.
type event struct {
	at   int64  // ns since the start
	seq  uint64 // orders the events of the same time by creation
	job  *job
	gen  uint32 // of the job's request or the router's timer; outdated events are ignored
	i    int32
	kind kind
}

// heap4 is a 4-ary heap of events: flatter than a binary heap, and events are small
// enough to be stored inline.
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

// fifo is a queue that reuses its memory.
type fifo struct {
	js   []*job
	head int
}

func (q *fifo) len() int { return len(q.js) - q.head }

func (q *fifo) push(j *job) { q.js = append(q.js, j) }

func (q *fifo) first() *job { return q.js[q.head] }

// pushFront adds a task at the front.
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
