// Package heap decides how often memory is collected.
//
// Go lets the heap grow by as much as lives in it before it looks for garbage. Stages
// hold little and pass a lot through, so that would be many times a second. Here it may
// grow by so many bytes at least, whatever lives:
//
//	garbage before a collection = max(live heap, headroom)
//
// Both bounds hold at any size: a process that holds much is not made four times as
// large, as by GOGC=400, and one that holds little costs the headroom and no more.
package heap

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// Room lets the heap of this process grow by headroom bytes between collections, or by
// as much as lives if that is more, until stop is called. It does nothing for 0, or when GOGC
// in the environment says how it is to be.
func Room(headroom int64) (stop func()) {
	if headroom <= 0 || os.Getenv("GOGC") != "" {
		return func() {}
	}
	r := &room{headroom: uint64(headroom), live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}}
	r.before = debug.SetGCPercent(r.percent())
	r.again()
	return r.stop
}

// least is what Go takes for the live heap of a process in which less lives.
const least = 4 << 20

type room struct {
	headroom uint64

	mu      sync.Mutex
	live    []metrics.Sample
	set     int // percent
	before  int
	stopped bool
}

// again has adjust called after the next collection, which finds an object that
// nobody holds.
func (r *room) again() {
	type bell struct{ _ [16]byte } // not so small that it shares its place with what lives
	b := &bell{}
	runtime.AddCleanup(b, func(r *room) { r.adjust() }, r)
}

func (r *room) adjust() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	was := r.set
	if now := r.percent(); now*10 < was*9 || now*9 > was*10 { // setting it stops the world
		debug.SetGCPercent(now)
	} else {
		r.set = was
	}
	r.again()
}

// percent is what Go calls the headroom, of what lives.
func (r *room) percent() int {
	metrics.Read(r.live)
	live := max(r.live[0].Value.Uint64(), least)
	r.set = int(max(100, r.headroom*100/live))
	return r.set
}

func (r *room) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.stopped = true
		debug.SetGCPercent(r.before)
	}
}
