package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/router/decide"
	"github.com/batchyard/batchyard/stream"
)

// sorting asks the scheduler which tasks have room in the window.
type sorting struct {
	items []*decide.Item
	kept  chan []*decide.Item // the answer: the others were set aside
}

// sort returns the items that have room in the window; the others are set aside. While much of the window
// is free, all of them have, without a question. sorted says that the scheduler expects what was kept, and
// has to hear that it has landed. It waits while there is no room for what is set aside either.
func (s *scheduler) sort(ctx context.Context, first *stream.Record, items []*decide.Item) (kept []*decide.Item, sorted bool) {
	recalled := first.Recalled() != nil
	if !recalled && s.open[slices.Index(topics[:], first.Topic)].Load() {
		return items, false
	}
	if len(items) == 0 {
		return nil, true
	}
	req := sorting{items: items, kept: make(chan []*decide.Item, 1)}
	select {
	case s.sorts <- req:
	case <-ctx.Done():
		return nil, true
	}
	select {
	case kept = <-req.kept:
	case <-ctx.Done(): // the partition is lost, or the router stops
	}
	return kept, true
}

// sortInterval is how long the scheduler may sort, at most, before it decides again.
const sortInterval = 2 * time.Millisecond

// sortWaiting sorts the items of a request, and of those that wait behind it.
func (s *scheduler) sortWaiting(req sorting) {
	s.unsorted = append(s.unsorted, req)
	for range cap(s.sorts) {
		select {
		case req := <-s.sorts:
			s.unsorted = append(s.unsorted, req)
			continue
		default:
		}
		break
	}
	s.landAll()
	s.sortAll()
	s.publishOpen()
}

// sortAll sorts what waits for it.
func (s *scheduler) sortAll() {
	now := clock.Now()
	s.unsorted = slices.DeleteFunc(s.unsorted, func(req sorting) bool {
		if req.items[0].Origin.Lost() {
			req.kept <- nil
			return true
		}
		kept, aside, ok := s.decider.Sort(req.items, now)
		if !ok {
			return false
		}
		for _, it := range aside {
			originOf(it).rec.SetAside()
		}
		req.kept <- kept
		return true
	})
}

// publishOpen says for which topics sort need not ask.
func (s *scheduler) publishOpen() {
	for i, topic := range topics {
		s.open[i].Store(s.decider.Open(topic))
	}
}

// landings collects the records that were sorted and have reached the window, or ended on the way.
type landings struct {
	mu   sync.Mutex
	recs []*stream.Record
}

// land notes that records have landed.
func (s *scheduler) land(recs []*stream.Record) {
	s.landings.mu.Lock()
	s.landings.recs = append(s.landings.recs, recs...)
	s.landings.mu.Unlock()
	signal(s.landed)
}

// landAll passes on what has landed.
func (s *scheduler) landAll() {
	s.landings.mu.Lock()
	recs := s.landings.recs
	s.landings.recs = nil
	s.landings.mu.Unlock()
	for _, rec := range recs {
		if o := rec.Ownership(); o != nil {
			s.decider.Land(o, rec.Offset)
		}
	}
}
