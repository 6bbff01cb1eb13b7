package check

import (
	"slices"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/chaos/watch"
)

// Hole is records that Kafka does not hold any more, from First to Last.
type Hole struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	First     int64  `json:"first_offset"`
	Last      int64  `json:"last_offset"`
}

func (h Hole) has(topic string, partition int32, offset int64) bool {
	return h.Topic == topic && h.Partition == partition && h.First <= offset && offset <= h.Last
}

// Removal is records that were deleted on purpose, by a request or by a short retention.
type Removal struct {
	Hole
	Unread bool // their stage had read none of them
}

// Announced is a hole of which a stage has written an event.
type Announced struct {
	Place
	Hole Hole
}

// Carried is a record and the runs of tasks that it carries.
type Carried struct {
	Topic     string
	Partition int32
	Offset    int64
	At        time.Time // when Kafka wrote it
	Runs      []task.Run
}

// Absence is the time in which no process of a stage was there.
type Absence struct {
	Stage    string
	From, To time.Time
}

// Grace is how long after the last process of a stage has gone a router may still assign tasks to its devices:
// until its report in Redis expires, and for as long as a router may be stopped that has decided already.
const Grace = 20 * time.Second

// grants checks that nothing is assigned while no one is there who would run it. It would wait in a topic for
// as long as records are kept, and no longer.
func (c *checker) grants() {
	for _, a := range c.h.Absences {
		if a.Stage != "workers" && a.Stage != "batcher" {
			continue
		}
		n := 0
		for _, r := range c.h.Records {
			if r.Topic == stream.Assignments && r.At.After(a.From.Add(Grace)) && r.At.Before(a.To) {
				n += len(r.Runs)
			}
		}
		if n > 0 {
			c.add(Ungranted, task.Key{}, "%d tasks were assigned although there had been no process of the stage %s for more than %.0f s", n, a.Stage, Grace.Seconds())
		}
	}
}

// holes finds out which tasks had records in the holes that Batchyard names, and checks that these holes are
// what was deleted.
func (c *checker) holes() {
	c.lookIntoHoles()
	for _, h := range c.h.Holes {
		if !slices.ContainsFunc(c.h.Removed, func(r Removal) bool { return r.has(h.Topic, h.Partition, h.First) }) ||
			!slices.ContainsFunc(c.h.Removed, func(r Removal) bool { return r.has(h.Topic, h.Partition, h.Last) }) {
			c.add(HoleInvented, task.Key{}, "%s/%d is said to lack the records %d to %d, but they were not deleted before they were read", h.Topic, h.Partition, h.First, h.Last)
		}
	}
	for _, r := range c.h.Removed {
		if r.Unread && r.First <= r.Last && (!c.named(r.Topic, r.Partition, r.First) || !c.named(r.Topic, r.Partition, r.Last)) {
			c.add(HoleUnnamed, task.Key{}, "the records %d to %d of %s/%d were deleted before they were read, but no hole says so", r.First, r.Last, r.Topic, r.Partition)
		}
	}
	for _, run := range c.h.Reruns {
		if !c.inHole[run.Key] {
			c.add(LostInvented, run.Key, "it ran again because its answer was lost, but no record of it was in a hole")
		}
	}
	for _, r := range c.h.Results {
		if r.Lost && !c.inHole[r.Run.Key] {
			c.add(LostInvented, r.Run.Key, "it ended as lost, but no record of it was in a hole")
		}
	}
}

// lookIntoHoles finds out which tasks had records in holes.
func (c *checker) lookIntoHoles() {
	c.inHole, c.outside = map[task.Key]bool{}, map[task.Key]bool{}
	for _, r := range c.h.Records {
		in := c.named(r.Topic, r.Partition, r.Offset)
		for _, run := range r.Runs {
			c.note(run.Key, in, r.Topic == stream.Results)
		}
	}
	for i := range c.h.Events {
		e := &c.h.Events[i]
		c.note(e.Key, c.named(stream.Events, e.Partition, e.Offset), e.hasState())
	}
}

// hasState reports whether the event makes a row in tasks.
func (e *Event) hasState() bool {
	info, _ := task.Action(e.Action).Info()
	return info.State != ""
}

// Vanished returns the tasks that Postgres cannot know, according to the records, events and holes of a history.
func Vanished(h *History) map[task.Key]bool {
	c := &checker{h: h}
	c.lookIntoHoles()
	out := map[task.Key]bool{}
	for k := range c.inHole {
		if c.vanished(k) {
			out[k] = true
		}
	}
	return out
}

// note remembers where a task had a record. Records from which Postgres gets to know tasks count as outside.
func (c *checker) note(k task.Key, in, known bool) {
	if in {
		c.inHole[k] = true
	} else if known {
		c.outside[k] = true
	}
}

// named reports whether a record was in a hole that Batchyard names, or in one whose event was in such a hole.
func (c *checker) named(topic string, partition int32, offset int64) bool {
	has := func(h Hole) bool { return h.has(topic, partition, offset) }
	return slices.ContainsFunc(c.h.Holes, has) || slices.ContainsFunc(c.h.Announced, func(a Announced) bool {
		return has(a.Hole) && slices.ContainsFunc(c.h.Holes, func(h Hole) bool { return h.has(stream.Events, a.Partition, a.Offset) })
	})
}

// vanished reports whether Postgres cannot know a task, because everything that would have told it was in
// holes that are named.
func (c *checker) vanished(k task.Key) bool { return c.inHole[k] && !c.outside[k] }

// excused reports whether a task stood still because Postgres could not know it: everything that would have told it
// was in holes that are named. If it moved later, it was submitted again, and must have moved soon after that.
func (c *checker) excused(s *watch.Stall) bool {
	if c.vanished(s.Key) || !s.Moved {
		return c.vanished(s.Key)
	}
	end := s.Since.Add(s.Stood)
	then := end.Add(-lookGap)
	for i := range c.h.Submits {
		again := &c.h.Submits[i]
		if again.Key != s.Key || again.Outcome != Accepted || !again.At.After(s.Since) || again.At.After(end) {
			continue
		}
		if end.Sub(again.At) > s.Bound {
			return false
		}
		then = again.At
		break
	}
	return c.vanishedBefore(s.Key, then)
}

// vanishedBefore reports whether everything that had been written by then about a task, and from which Postgres gets
// to know tasks, was in holes.
func (c *checker) vanishedBefore(k task.Key, then time.Time) bool {
	in := false
	for _, r := range c.h.Records {
		if !r.At.Before(then) || !slices.ContainsFunc(r.Runs, func(run task.Run) bool { return run.Key == k }) {
			continue
		}
		switch {
		case c.named(r.Topic, r.Partition, r.Offset):
			in = true
		case r.Topic == stream.Results:
			return false
		}
	}
	for i := range c.h.Events {
		switch e := &c.h.Events[i]; {
		case e.Key != k || !e.At.Before(then):
		case c.named(stream.Events, e.Partition, e.Offset):
			in = true
		case e.hasState():
			return false
		}
	}
	return in
}

// lookGap is the longest time after which the watchdog has noticed that something moved.
const lookGap = 10 * time.Second

// stalls reports what stood still for too long.
func (c *checker) stalls() {
	for i := range c.h.Stalls {
		s := &c.h.Stalls[i]
		if s.Key.ID == "" || !c.excused(s) {
			c.add(StoodStill, s.Key, "%s", s)
		}
	}
}

// verified checks that the program's own checks name every hole and find nothing else.
func (c *checker) verified() {
	for _, cmd := range c.h.Commands {
		if !cmd.Judged {
			if cmd.Code != 0 {
				c.add(CommandFailed, task.Key{}, "batchyard %s exited with code %d:\n%s", cmd.Args, cmd.Code, cmd.Output)
			}
			continue
		}
		if want := min(1, len(cmd.Findings)); cmd.Code != want {
			c.add(CommandFailed, task.Key{}, "batchyard %s exited with code %d instead of %d:\n%s", cmd.Args, cmd.Code, want, cmd.Output)
		}
		for _, f := range cmd.Findings {
			if f.Hole == nil && !f.Expected {
				c.add(CommandFailed, task.Key{}, "batchyard %s: %s", cmd.Args, f.Text)
			}
		}
		for _, h := range c.h.Holes {
			if !slices.ContainsFunc(cmd.Findings, func(f Finding) bool { return f.Hole != nil && *f.Hole == h }) {
				c.add(HoleUnnamed, task.Key{}, "batchyard %s does not name the records %d to %d of %s/%d", cmd.Args, h.First, h.Last, h.Topic, h.Partition)
			}
		}
		for _, f := range cmd.Findings {
			if f.Hole != nil && !slices.Contains(c.h.Holes, *f.Hole) {
				c.add(HoleInvented, task.Key{}, "batchyard %s: %s", cmd.Args, f.Text)
			}
		}
	}
}
