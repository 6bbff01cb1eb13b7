package stream

import "time"

// Progress says how far something is that a consumer has not finished.
type Progress int

// The values of Progress.
const (
	InFlight  Progress = iota // it was handed out
	InHandler                 // the handler has it, and has not returned
	AtRest                    // what it became was refused, and it will be handed out again
	NotRead                   // it is in the topic, and nothing keeps the consumer from reading it
	NotBegun                  // the partition was gained, and the offset to begin at is not known yet
	Failing                   // an operation on Kafka fails
)

// Unfinished is what a consumer of this process has not finished for longest, of one partition and kind.
type Unfinished struct {
	Stage     string // the group
	Topic     string
	Offset    int64
	Since     time.Time // at least so long
	Progress  Progress
	Ownership *Ownership // nil if it is Failing
	Cause     string     // of Failing
}

// Unfinished returns what consumers of a stage have not finished. It is asked once a second or so, by one caller, and
// costs nothing in between. What is reported as InFlight may be waiting for its time, or set aside: the stage
// knows.
func (cl *Client) Unfinished(stage string, now time.Time) (all []Unfinished) {
	for k := range cl.consumers.Range {
		c := k.(*consumer) //nolint:forcetypeassert // Consume puts nothing else there
		if c.cfg.Group != stage {
			continue
		}
		at := Unfinished{Stage: stage, Topic: c.cfg.Topic}
		if p, ok := c.trouble.Oldest(); ok {
			at.Progress, at.Since, at.Cause = Failing, p.Since, p.Operation+": "+p.Err.Error()
			all = append(all, at)
		}
		for _, p := range c.partitions() {
			all = p.unfinished(all, now)
		}
	}
	return all
}

// unfinished adds what of a partition is not finished.
func (p *partition) unfinished(all []Unfinished, now time.Time) []Unfinished {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost.Load() || p.ctx.Err() != nil {
		return all
	}
	add := func(offset int64, since time.Time, how Progress) {
		all = append(all, Unfinished{Stage: p.c.cfg.Group, Topic: p.c.cfg.Topic, Offset: offset, Since: since, Progress: how, Ownership: p.owned})
	}
	if !p.tracker.Started() {
		add(0, p.began, NotBegun)
		return all
	}
	offset, since, ok := p.tracker.Oldest(now)
	if ok {
		add(offset, since, InFlight)
		if p.refused > 0 {
			add(offset, since, AtRest)
		}
	}
	if since, ok := p.tracker.Unread(p.readable.Load(), now); ok && p.inFlight == 0 {
		add(p.tracker.Next(), since, NotRead)
	}
	for _, at := range []*time.Time{p.delivering.Load(), p.recalling.Load()} {
		if at != nil {
			add(offset, *at, InHandler)
		}
	}
	return all
}

// Writing returns what of this process's writing to Kafka has failed for longest, and since when; false if nothing does.
func (cl *Client) Writing() (since time.Time, failing bool, err error) {
	p, failing := cl.producer.trouble.Oldest()
	return p.Since, failing, p.Err
}
