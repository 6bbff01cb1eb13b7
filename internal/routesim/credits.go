package routesim

import (
	"strconv"

	"github.com/batchyard/batchyard/device"
)

// account is an in-memory model, in virtual time, of the credits that
// [device.Credits] keeps in Redis. A test drives both with the same calls and
// compares them.
type account struct {
	ttl    int64 // ms until a lease expires unless it is renewed
	used   map[string]int
	leases map[string]*lease
	asks   map[string]asked
	expiry leaseEnds
	gone   int64 // ms, the time at which the keys in Redis expire unless they are used
	calls  uint64
}

type lease struct {
	id      string
	pool    string
	n       int
	until   int64
	granted int
	spent   int // assignments made with it, for the simulation's checks
}

// asked is the router whose tasks wait for a pool.
type asked struct {
	until   int64
	band, n int
	who     string
}

// askLife is how long an ask counts unless it is renewed, in ms, as in
// [device.Credits].
const askLife = 1000

// maxReap limits how many expired leases one call reclaims.
const maxReap = 200

func newAccount(ttlMS int64) *account {
	return &account{ttl: ttlMS, used: map[string]int{}, leases: map[string]*lease{}, asks: map[string]asked{}}
}

// reap reclaims the credits of up to maxReap expired leases and returns the pools
// that have room as a result.
func (a *account) reap(now int64) (freed []string) {
	if a.gone > 0 && now >= a.gone {
		clear(a.used)
		clear(a.leases)
		a.expiry = leaseEnds{}
	}
	reclaimed := map[string]int(nil)
	for n := 0; n < maxReap; {
		e, ok := a.expiry.due(now)
		if !ok {
			break
		}
		l := a.leases[e.id]
		if l == nil || l.until != e.until { // released or renewed since
			continue
		}
		n++
		delete(a.leases, e.id)
		if reclaimed == nil {
			reclaimed = map[string]int{}
		}
		if _, ok := reclaimed[l.pool]; !ok {
			freed = append(freed, l.pool)
		}
		reclaimed[l.pool] += l.n
	}
	for _, p := range freed {
		a.take(p, -reclaimed[p])
	}
	return freed
}

// take adds n to a pool's credits in use, and drops a pool that has none.
func (a *account) take(pool string, n int) {
	if left := a.used[pool] + n; left > 0 {
		a.used[pool] = left
	} else {
		delete(a.used, pool)
	}
}

func (a *account) hold(l *lease, now int64) {
	l.until = now + a.ttl
	a.gone = now + 20*a.ttl
	a.expiry.push(leaseEnd{l.until, l.id})
}

// ask records the pools that the holder's tasks are waiting for.
func (a *account) ask(now int64, holder string, asks []device.Ask) {
	for _, k := range asks {
		old, ok := a.asked(now, k.Pool)
		switch {
		case k.N == 0:
			if ok && old.who == holder {
				delete(a.asks, k.Pool)
			}
		case !ok || old.who == holder || k.Band <= old.band:
			a.asks[k.Pool] = asked{now + askLife, k.Band, k.N, holder}
		}
	}
}

func (a *account) asked(now int64, pool string) (asked, bool) {
	k, ok := a.asks[pool]
	return k, ok && k.until >= now
}

// acquire takes credits in a single step, in the order of the wants, which must not
// name a pool twice.
func (a *account) acquire(now int64, holder string, wants []device.Want, asks []device.Ask) (grants []device.Grant, freed []string) {
	freed = a.reap(now)
	a.ask(now, holder, asks)
	a.calls++
	call := holder + "." + strconv.FormatUint(a.calls, 36) + "."
	grants = make([]device.Grant, len(wants))
	for i := range wants {
		w := &wants[i]
		used := a.used[w.Pool]
		got, held := a.share(now, holder, w, max(0, w.Limit-used))
		grants[i] = device.Grant{Pool: w.Pool, N: got, Used: used + got, Held: held}
		if got == 0 {
			continue
		}
		l := &lease{id: call + strconv.Itoa(i+1), pool: w.Pool, n: got, granted: got}
		a.leases[l.id] = l
		a.used[w.Pool] = used + got
		a.hold(l, now)
		grants[i].Lease = l.id
	}
	return grants, freed
}

// share returns how many of a pool's free credits a want gets: the highest priority
// first. The last of them are held back if another router asks for a higher
// priority.
func (a *account) share(now int64, holder string, w *device.Want, room int) (got int, held bool) {
	of := w.Of
	if of == [3]int{} {
		of[0] = w.N
	}
	k, ok := a.asked(now, w.Pool)
	for b, want := range of {
		may := room - got
		if want = max(0, want); ok && k.who != holder && b > k.band {
			less := max(0, may-k.n)
			held = held || min(want, may) > less
			may = less
		}
		got += min(want, may)
	}
	return got, held
}

// release returns n credits of a lease. freed are the pools that have room as a
// result; the lease's own pool is not among them if the lease has expired.
func (a *account) release(now int64, id string, n int) (freed []string) {
	freed = a.reap(now)
	l := a.leases[id]
	if l == nil {
		return freed
	}
	n = min(n, l.n)
	if l.n -= n; l.n == 0 {
		delete(a.leases, id)
	}
	a.take(l.pool, -n)
	return append(freed, l.pool)
}

// renew extends leases; lost counts those that have expired.
func (a *account) renew(now int64, ids []string) (lost int, freed []string) {
	freed = a.reap(now)
	for _, id := range ids {
		if l := a.leases[id]; l != nil {
			a.hold(l, now)
		} else {
			lost++
		}
	}
	return lost, freed
}

// leaseEnd is the time at which a lease expires, unless it has been renewed since.
type leaseEnd struct {
	until int64
	id    string
}

// leaseEnds is sorted by time and then by id, like a sorted set in Redis. All leases
// have the same lifetime, so a new entry belongs near the end.
type leaseEnds struct {
	es   []leaseEnd
	head int
}

func (q *leaseEnds) push(e leaseEnd) {
	q.es = append(q.es, e)
	for i := len(q.es) - 1; i > q.head; i-- {
		b := &q.es[i-1]
		if b.until < e.until || b.until == e.until && b.id <= e.id {
			break
		}
		q.es[i], q.es[i-1] = *b, e
	}
}

// due removes and returns the first entry, if it has expired by now.
func (q *leaseEnds) due(now int64) (leaseEnd, bool) {
	if q.head == len(q.es) || q.es[q.head].until > now {
		return leaseEnd{}, false
	}
	e := q.es[q.head]
	q.es[q.head] = leaseEnd{}
	if q.head++; q.head > 256 && 2*q.head > len(q.es) {
		n := copy(q.es, q.es[q.head:])
		clear(q.es[n:])
		q.es, q.head = q.es[:n], 0
	}
	return e, true
}
