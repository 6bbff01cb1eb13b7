package stream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Pauses before a record is handed to the stage again.
const (
	minAgain = time.Second
	maxAgain = time.Minute
)

// Again makes the stage get the record again after a pause, which grows each time: the broker refused for
// good what the record became, so it cannot be Done. From now on this record is Lost, and the one that is
// handed out in its place stands for its offset. Others of its partition are not held up, except that
// nothing beyond it is committed as an offset. It may be called from any goroutine, and does nothing for a
// record that is done, lost or set aside, or when the error only says that the client is closed. The record
// that is handed out in its place was recalled if this one was, and may be set aside.
func (r *Record) Again(err error) {
	if r.owner != nil && !errors.Is(err, ErrClosed) {
		r.owner.again(r, err)
	}
}

// again makes a copy stand for a record, to be handed out after a pause. If the process dies meanwhile, the
// partition's next owner reads the record.
func (p *partition) again(r *Record, err error) {
	c := p.supersede(r)
	if c == nil {
		p.release(r, finished) // of a topic that was recreated: there is nothing to be done again
		return
	}
	p.c.refusals.Note(p.c.cfg.Topic, err)
	p.c.metrics.Again.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
	pause := min(maxAgain, minAgain<<min(r.tries, 10))
	pause = pause/2 + rand.N(pause/2+1)
	p.c.logger.Error("what a record became was refused: it is handed out again", "record", r.Position(), "times", c.tries, "in", pause.Round(time.Millisecond), "error", err)
	time.AfterFunc(pause, func() { p.handBack(c) })
	if p.c.cfg.OnAgain != nil {
		p.c.cfg.OnAgain()
	}
	p.c.drained() // a drain does not wait for it
}

// supersede makes a copy stand for a record; nil if the record does not count any more.
func (p *partition) supersede(r *Record) *Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.released || p.lost.Load() || r.owned != p.owned {
		return nil
	}
	r.released = true
	r.superseded.Store(true)
	p.resting++
	if r.tries == 0 {
		p.refused++
		p.c.refusals.Add(p.c.cfg.Topic)
	}
	return r.copy()
}

// copy returns the record as it was read.
func (r *Record) copy() *Record {
	return &Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers, Time: r.Time,
		Incomplete: r.Incomplete, signer: r.signer, owner: r.owner, owned: r.owned, recalled: r.recalled, tries: r.tries + 1,
	}
}

// handBack makes a record due to be handed out again.
func (p *partition) handBack(r *Record) {
	p.mu.Lock()
	p.back = append(p.back, r)
	p.mu.Unlock()
	signal(p.wake)
}

// deliverAgain hands out the records that are due again, in the goroutine that hands out all those that are
// read for the first time. When the partition ends, its next owner reads them.
func (p *partition) deliverAgain() {
	p.handOut(&p.delivering, func() []*Record {
		p.mu.Lock()
		back := p.back
		p.back = nil
		recs := slices.DeleteFunc(slices.Clone(back), func(r *Record) bool { return r.owned != p.owned || p.lost.Load() })
		p.resting -= len(recs)
		p.mu.Unlock()
		for _, r := range back {
			if r.owned.Lost() { // of a topic that was recreated: nothing else frees its memory
				p.release(r, finished)
			}
		}
		return recs
	})
}

// failingLong is how long writing to a partition may fail before it is a problem: elections of leaders
// take seconds.
const failingLong = 15 * time.Second

// Stuck says what has stood still for long because of this process's writes to Kafka; nil: nothing does.
func (cl *Client) Stuck() error {
	err := cl.refusals.Problem()
	if w, failing := cl.producer.trouble.Oldest(); failing && time.Since(w.Since) >= failingLong {
		err = errors.Join(fmt.Errorf("writing has failed for %s (%s): %w", time.Since(w.Since).Round(time.Second), w.Operation, w.Err), err)
	}
	return err
}
