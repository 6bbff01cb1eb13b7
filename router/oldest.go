package router

import (
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/internal/waiting"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/stream/records"
)

// oldest is what waits in a router, as its goroutines report it.
type oldest struct {
	window    *waiting.Published // by the scheduler
	contested *waiting.Published // by settle
	redis     waiting.Condition  // Redis gives no claims, no credits, or does not say what devices there are

	held   atomic.Pointer[map[holder]bool]            // the contested records
	noRoom atomic.Pointer[map[*stream.Ownership]bool] // what is read of these finds no room
	lost   waiting.Lost[holder]                       // used only by the scheduler
}

func newOldest() *oldest {
	o := &oldest{window: waiting.NewPublished("the scheduler", 10*waiting.Interval), contested: waiting.NewPublished("the goroutine that settles contested ids", 10*waiting.Interval)}
	o.held.Store(&map[holder]bool{})
	o.noRoom.Store(&map[*stream.Ownership]bool{})
	return o
}

// Waiting says what waits in the router. It is called about once a second, by one goroutine.
func (r *Router) Waiting(now time.Time) waiting.List {
	o := r.sched.oldest
	var redis waiting.List
	noClaims := o.redis.Add(&redis, waiting.Redis, "what needs a claim or a credit")
	l := records.Waiting(r.deps.Log, Stage, now, func(u *stream.Unfinished, w *waiting.Oldest) bool {
		switch {
		case u.Progress == stream.InFlight:
			return false // the scheduler knows why
		case u.Progress != stream.InHandler:
		case (*o.noRoom.Load())[u.Ownership]:
			w.Reason, w.Still = waiting.NoRoom, time.Time{}
		case noClaims:
			w.Reason, w.Cause = waiting.Redis, redis[0].Cause
		default:
			w.Cause = "it is on its way to the scheduler"
		}
		return true
	})
	for _, part := range []waiting.List{redis, o.window.Get(now), o.contested.Get(now)} {
		for _, w := range part {
			l.Add(w)
		}
	}
	return l
}

// reportWaiting publishes what waits in the window, and which of the records that hold up a partition are nowhere: what
// became of them is written, but not acknowledged.
func (s *scheduler) reportWaiting(now time.Time) {
	lowest, handling := map[decide.Owner]int64{}, map[*stream.Ownership]bool{}
	for _, u := range s.deps.Log.Unfinished(Stage, now) {
		switch u.Progress {
		case stream.InFlight:
			lowest[u.Ownership] = u.Offset
		case stream.InHandler:
			handling[u.Ownership] = true
		case stream.AtRest, stream.NotRead, stream.NotBegun, stream.Failing: // others report these
		}
	}
	report := s.decider.Oldest(decide.Question{
		Now: clock.Now(), At: now, Lowest: lowest, Allow: s.deps.RequestTimeout,
		Position: func(o decide.Owner, offset int64) string {
			return o.(*stream.Ownership).Position(offset) //nolint:forcetypeassert // intake makes all items
		},
	})
	held := *s.oldest.held.Load()
	var unknown []holder
	for o, offset := range lowest {
		h := holder{o.(*stream.Ownership), offset} //nolint:forcetypeassert // as above
		if !report.Known[o][offset] && !held[h] && !handling[h.owner] {
			unknown = append(unknown, h)
		}
	}
	reason := waiting.Stuck
	if _, failing, _ := s.deps.Log.Writing(); failing {
		reason = waiting.Kafka
	}
	for h, since := range s.oldest.lost.Look(now, unknown) {
		report.Add(waiting.Oldest{Reason: reason, What: h.owner.Position(h.offset), Since: since, Still: since, Cause: "what became of it is not acknowledged"})
	}
	full := map[*stream.Ownership]bool{}
	for _, req := range s.unsorted {
		full[originOf(req.items[0]).rec.Ownership()] = true
	}
	s.oldest.noRoom.Store(&full)
	s.oldest.window.Set(now, report.List)
}

// reportContested publishes the items whose id is contested, the longest waiting first.
func (o *oldest) reportContested(now time.Time, items []*decide.Item) {
	held := make(map[holder]bool, len(items))
	var l waiting.List
	for _, it := range items {
		rec := originOf(it).rec
		held[holder{rec.Ownership(), rec.Offset}] = true
		at := originOf(it).contested
		l.Add(waiting.Oldest{Reason: waiting.Postgres, What: rec.Position(), Since: at, Still: at, Cause: "another request may have its id"})
	}
	o.held.Store(&held)
	o.contested.Set(now, l)
}
