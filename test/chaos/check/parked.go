package check

import (
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// spareParkings is how often a task may be parked beyond what waiting takes: by processes that die before they
// have committed what they parked.
const spareParkings = 5

// parked checks that waiting costs no more than it has to: a task that waits is written again only when its
// record has been in the log for half of its retention.
func (c *checker) parked() {
	type span struct {
		n           int
		first, last time.Time
	}
	spans := map[task.Run]*span{}
	for _, r := range c.h.Records {
		if r.Topic != stream.TasksParked {
			continue
		}
		for _, run := range r.Runs {
			s := spans[run]
			if s == nil {
				s = &span{first: r.At}
				spans[run] = s
			}
			s.n, s.last = s.n+1, r.At
			c.h.MostParked = max(c.h.MostParked, s.n)
		}
	}
	if c.h.ParkEvery == 0 {
		return
	}
	for run, s := range spans {
		if most := spareParkings + int(s.last.Sub(s.first)/c.h.ParkEvery); s.n > most {
			c.add(ParkedTooOften, run.Key, "parked %d times within %.0f s; every %.0f s is enough", s.n, s.last.Sub(s.first).Seconds(), c.h.ParkEvery.Seconds())
		}
	}
}
