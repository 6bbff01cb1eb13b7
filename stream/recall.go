package stream

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/segmentio/kafka-go"

	"github.com/batchyard/batchyard/stream/internal/backoff"
)

// A stage that has no room for a record, and does not want to wait for it, sets it aside: its memory is
// freed, and the partition is read on. Until the record has been read again and is done, no commit
// passes it, so another owner reads it if this process dies.
//
//	handed out ──SetAside──▶ an offset only ──Recall──▶ read again ──▶ handed out
//	    └──▶ done

// Ownership is a partition from the moment that this process gained it until it is lost, or its topic is
// recreated.
type Ownership struct {
	p    *partition
	lost atomic.Bool
}

// Lost reports whether the ownership has ended. What was set aside under it is read again by the next owner.
func (o *Ownership) Lost() bool { return o.lost.Load() }

// Position names a record of the partition, as [Record.Position] does.
func (o *Ownership) Position(offset int64) string { return position(o.p.c.cfg.Topic, o.p.id, offset) }

// Wanted is a record to be read again.
type Wanted struct {
	Offset int64
	Marked bool // whatever the stage wants to know when it has the record again
}

// Ownership returns that of the record's partition; nil for a record of [Client.Scan].
func (r *Record) Ownership() *Ownership { return r.owned }

// Recalled returns what was asked for if the record was read again; nil if it was read for the first time.
func (r *Record) Recalled() *Wanted { return r.recalled }

// SetAside frees the memory that the record counts for, without finishing it: nothing more happens with it
// until it is read again. It does nothing for a record that is done or lost.
func (r *Record) SetAside() {
	if r.owner != nil {
		r.owner.release(r, setAside)
	}
}

// ErrRemoved is the error of an [Incomplete] record that the log does not hold any more: of a gap (see
// [ConsumerConfig]), or of a record that was set aside.
var ErrRemoved = errors.New("the record was removed from the log, by retention or an operator, before it was processed")

// Recall reads records again that were set aside, each once. It does not block; the handler gets them in
// the order of their offsets. They count against the consumer's limits, but do not wait for them. Records
// that the log does not hold any more are reported as gaps (OnGap in [ConsumerConfig]), and then handed out
// as [Incomplete] with the error [ErrRemoved], so that the stage does not wait for them.
func (o *Ownership) Recall(wanted []Wanted) {
	p := o.p
	p.mu.Lock()
	if p.owned == o && !p.lost.Load() {
		p.wanted = append(p.wanted, wanted...)
	}
	p.mu.Unlock()
	signal(p.recalls)
}

// ownership returns the current one.
func (p *partition) ownership() *Ownership {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.owned
}

// What is fetched at a time to read records again.
const (
	recallGap   = 64       // offsets that are read in vain between two wanted ones, at most
	recallBytes = 64 << 10 // of a fetch for a single record; a larger one is fetched anyway
	denseRecall = 32       // with more wanted records in a row, as much is fetched as when reading on
)

// recall reads again what Recall asked for, until the partition is lost.
func (p *partition) recall() {
	what := "recall " + strconv.Itoa(p.id)
	defer p.c.trouble.Report(what, nil)
	for r := (recaller{}); p.ctx.Err() == nil; {
		select {
		case <-p.recalls:
		case <-p.ctx.Done():
			return
		}
		p.mu.Lock()
		wanted, owned := p.wanted, p.owned
		p.wanted = nil
		p.mu.Unlock()
		slices.SortFunc(wanted, func(a, b Wanted) int { return cmp.Compare(a.Offset, b.Offset) })
		if r.owned != owned {
			r = recaller{p: p, owned: owned, want: p.c.cl.cfg.FetchBytes}
		}
		for failures := 0; len(wanted) > 0 && p.ctx.Err() == nil && !owned.Lost(); {
			rest, err := r.some(wanted)
			if p.ctx.Err() != nil {
				return
			}
			p.c.trouble.Report(what, err)
			wanted = rest
			if err != nil {
				p.c.metrics.FetchErrors.WithLabelValues(p.c.group, p.c.cfg.Topic).Inc()
				p.c.cl.layout.RefreshSoon()
				backoff.Wait(p.ctx, failures)
				failures++
				continue
			}
			failures = 0
		}
	}
}

// recaller reads records of one ownership again.
type recaller struct {
	p        *partition
	owned    *Ownership
	want     int64 // bytes of a fetch, after one that held no whole record
	begins   int64 // first offset of the log, when a record below it was wanted
	reported int64 // what was deleted below was reported
}

// some reads the first of the wanted records, and those that follow closely, and hands them out. It
// returns the rest.
func (r *recaller) some(wanted []Wanted) ([]Wanted, error) {
	p, c := r.p, r.p.c
	near := 1
	for near < len(wanted) && wanted[near].Offset-wanted[near-1].Offset <= recallGap {
		near++
	}
	bytes := min(recallBytes, c.cl.cfg.FetchBytes)
	if near > denseRecall {
		bytes = c.cl.cfg.FetchBytes
	}
	if r.want > c.cl.cfg.FetchBytes {
		bytes = r.want // there was no whole record in less
	}
	if !p.isOf(r.owned) {
		return nil, nil
	}
	got, err := c.cl.fetch(p.ctx, fetchRequest{topic: c.cfg.Topic, partition: p.id, from: wanted[0].Offset, maxBytes: bytes})
	if errors.Is(err, kafka.OffsetOutOfRange) {
		return r.missing(wanted)
	}
	for err == nil {
		wanted = r.match(wanted, got)
		if got.rest == nil {
			break
		}
		if len(wanted) == 0 || wanted[0].Offset-got.next > recallGap || p.ctx.Err() != nil {
			got.rest.close()
			break
		}
		got, err = got.rest.decode(bytes)
	}
	if err != nil {
		return wanted, err
	}
	if r.want = c.cl.cfg.FetchBytes; got.needsMoreBytes {
		r.want = min(4*max(bytes, r.want), maxFetchBytes)
	}
	return wanted, nil
}

// isOf reports whether the topic is still the one of the ownership, as far as is known.
func (p *partition) isOf(o *Ownership) bool {
	id := p.c.cl.layout.ID(p.c.cfg.Topic)
	p.mu.Lock()
	topic := p.tracker.Topic(id)
	p.mu.Unlock()
	return !o.Lost() && (topic == "" || id == "" || topic == id)
}

// match hands out the wanted ones of the records that were fetched, and returns those that come after
// them. What is not there, although records beyond it are, was removed.
func (r *recaller) match(wanted []Wanted, got fetched) []Wanted {
	var found []*Record
	for _, rec := range got.recs {
		last := rec.Offset
		if rec.Incomplete != nil {
			last = max(last, rec.Incomplete.Last)
		}
		for len(wanted) > 0 && wanted[0].Offset < rec.Offset {
			found = append(found, r.removed(wanted[0].Offset, &wanted[0]))
			wanted = wanted[1:]
		}
		if len(wanted) > 0 && wanted[0].Offset <= last {
			rec.recalled, rec.Offset = &wanted[0], wanted[0].Offset
			found = append(found, rec)
			wanted = wanted[1:]
		}
	}
	for len(wanted) > 0 && wanted[0].Offset < got.next {
		found = append(found, r.removed(wanted[0].Offset, &wanted[0]))
		wanted = wanted[1:]
	}
	r.handOut(found)
	return wanted
}

// missing hands out the wanted records that are below the first one of the log, or else beyond its end, as
// removed.
func (r *recaller) missing(wanted []Wanted) ([]Wanted, error) {
	first, end, err := r.p.c.cl.bounds(r.p.ctx, r.p.c.cfg.Topic, r.p.id)
	if err != nil {
		return wanted, err
	}
	var found []*Record
	below := wanted[0].Offset < first
	if below {
		r.begins = first
	}
	for len(wanted) > 0 && (below && wanted[0].Offset < first || !below && wanted[0].Offset >= end) {
		found = append(found, r.removed(wanted[0].Offset, &wanted[0]))
		wanted = wanted[1:]
	}
	r.handOut(found)
	return wanted, nil
}

// removed stands for a record that the log does not hold any more.
func (r *recaller) removed(offset int64, w *Wanted) *Record {
	return &Record{
		Topic: r.p.c.cfg.Topic, Partition: r.p.id, Offset: offset, recalled: w, signer: r.p.c.cl.signer,
		Incomplete: &Incomplete{Err: ErrRemoved, Last: offset},
	}
}

// handOut hands out records. They count against the consumer's limits, but do not wait for them: the stage
// has asked for them, so it has room.
func (r *recaller) handOut(recs []*Record) {
	p := r.p
	for _, rec := range recs {
		rec.owner, rec.owned = p, r.owned
	}
	p.handOut(&p.recalling, func() []*Record {
		if r.owned.Lost() || !r.reportGaps(recs) {
			return nil
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, rec := range recs {
			p.c.budget.Add(&p.budget, 1, rec.size())
		}
		if p.owned == r.owned {
			p.inFlight += len(recs)
		}
		return recs
	})
}

// reportGaps reports removed records that follow each other as one gap, which also covers what lies between
// them and was done before; and what was deleted from the beginning of the log as one, however many records
// of it are recalled later. It returns false when the partition ends: its next owner finds the gap.
func (r *recaller) reportGaps(recs []*Record) bool {
	p := r.p
	if r.begins > r.reported {
		p.mu.Lock()
		lowest := p.tracker.Lowest()
		p.mu.Unlock()
		if !p.reportGap(p.gap(r.owned, lowest, r.begins-1)) {
			return false
		}
		r.reported = r.begins
	}
	var n int
	for ; len(recs) > 0; recs = recs[max(n, 1):] {
		for n = 0; n < len(recs) && recs[n].Incomplete != nil && errors.Is(recs[n].Incomplete.Err, ErrRemoved); n++ {
		}
		p.c.metrics.Missed.WithLabelValues(p.c.group, p.c.cfg.Topic).Add(float64(n))
		if n > 0 && recs[n-1].Offset >= r.reported && !p.reportGap(p.gap(r.owned, recs[0].Offset, recs[n-1].Offset)) {
			return false
		}
	}
	return true
}
