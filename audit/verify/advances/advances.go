// Package advances checks that records were recorded without a gap: how far transactions have recorded each partition,
// as rows of the log say, against stream_offsets. Results and dead letters have no rows of their own, so that rows are
// there without a gap does not show it.
package advances

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/batchyard/batchyard/audit"
	"github.com/batchyard/batchyard/internal/pg"
)

// maxRuns bounds the memory: the number of runs, of all partitions. There is one for each owner that a partition had, and
// a few more while rows arrive.
const maxRuns = 1 << 21

// Log is what the log says about how far partitions were recorded. Its zero value is empty.
type Log struct {
	partitions map[audit.RowKey]map[int64]*tenure // by epoch
	runs       int
	scattered  bool
}

// tenure is what one owner of a partition has recorded.
type tenure struct {
	byFrom, byTo map[int64]*run
	twice        []*run // begin or end where another does
}

// run is consecutive advances.
type run struct {
	from, to    int64
	first, last int64 // when the first and the last one were written, in Postgres' microseconds
}

// Take takes the advances in a value of row_digests. at is when the row was written. Rows may come in any order.
func (l *Log) Take(b []byte, at int64) {
	audit.ReadAdvances(b, func(a audit.Advance) { l.add(a, at) })
}

func (l *Log) add(a audit.Advance, at int64) {
	if l.scattered {
		return
	}
	if l.partitions == nil {
		l.partitions = map[audit.RowKey]map[int64]*tenure{}
	}
	of := l.partitions[a.Key]
	if of == nil {
		of = map[int64]*tenure{}
		l.partitions[a.Key] = of
	}
	t := of[a.Epoch]
	if t == nil {
		t = &tenure{byFrom: map[int64]*run{}, byTo: map[int64]*run{}}
		of[a.Epoch] = t
	}
	r := t.byTo[a.From]
	if r == nil {
		if l.runs++; l.runs > maxRuns {
			l.scattered, l.partitions = true, nil
			return
		}
		r = &run{a.From, a.To, at, at}
	}
	if t.byFrom[a.From] != nil || t.byTo[a.To] != nil || a.To <= a.From {
		t.twice = append(t.twice, &run{a.From, a.To, at, at})
		return
	}
	delete(t.byTo, r.to)
	r.to, r.last = a.To, at
	if next := t.byFrom[r.to]; next != nil && next != r {
		delete(t.byFrom, next.from)
		r.to, r.last = next.to, next.last
		l.runs--
	}
	t.byFrom[r.from], t.byTo[r.to] = r, r
}

// Scattered reports whether there were too many runs to check anything.
func (l *Log) Scattered() bool { return l.scattered }

// Partition is a row of stream_offsets.
type Partition struct {
	audit.TopicPartition
	Next int64
	// Replaced are the breaks that say that its topic was replaced.
	Replaced []*audit.Break
}

// Found is something that is wrong, or, if it says so, that cannot be proven because rows were dropped.
type Found struct {
	At          audit.TopicPartition
	Gone        bool // records were skipped, or a row is gone; otherwise something was changed
	Unproven    bool
	First, Last int64 // offsets
	What        string
}

// Judge compares the advances with each other, and with stream_offsets. Those that were written before edge may have been
// dropped; zero: nothing was dropped.
func (l *Log) Judge(all []Partition, edge time.Time) (found []Found) {
	known := map[audit.RowKey]bool{}
	for i := range all {
		p := &all[i]
		key := audit.KeyOfPartition(p.TopicPartition)
		known[key] = true
		found = append(found, p.judge(l.inOrder(key), edge)...)
	}
	for key := range l.partitions {
		if !known[key] {
			found = append(found, Found{Gone: true, What: fmt.Sprintf("stream_offsets has no row of a partition of which records were recorded (the SHA-256 of its name begins with %x): recorders would record them again", key[:4])})
		}
	}
	return found
}

// inOrder returns the runs of a partition, as they were recorded.
func (l *Log) inOrder(key audit.RowKey) (runs []*run) {
	of := l.partitions[key]
	for _, epoch := range slices.Sorted(maps.Keys(of)) {
		own := slices.AppendSeq(slices.Clone(of[epoch].twice), maps.Values(of[epoch].byFrom))
		slices.SortFunc(own, func(a, b *run) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.from, b.from)) })
		runs = append(runs, own...)
	}
	return runs
}

// before is the offset of a partition of which nothing is recorded.
const before = -1

func (p *Partition) judge(runs []*run, edge time.Time) (found []Found) {
	dropped, limit := !edge.IsZero(), edge.UnixMicro()-pg.Epoch
	if len(runs) == 0 {
		switch {
		case p.Next < 0:
			return nil
		case dropped:
			return []Found{{At: p.TopicPartition, Unproven: true, What: fmt.Sprintf("stream_offsets says that %s is recorded up to offset %d, and the rows that say so were dropped, if there were any", p.TopicPartition, p.Next)}}
		}
		return []Found{{At: p.TopicPartition, Gone: true, First: 0, Last: p.Next - 1, What: p.skipped(before, p.Next)}}
	}
	used := make([]bool, len(p.Replaced))
	// explained reports whether a topic was replaced, so that recording continued elsewhere.
	explained := func(from int64) bool {
		for i, b := range p.Replaced {
			if !used[i] && (b.Last == audit.UnknownOffset && from == before || b.Last != audit.UnknownOffset && from == b.First) {
				used[i] = true
				return true
			}
		}
		return false
	}
	next, last := int64(before), int64(-1<<62)
	for i, r := range runs {
		switch {
		case r.from == next:
		case explained(r.from):
		case dropped && r.first < limit: // at the edge of what was dropped
		case dropped && last < limit:
			if i > 0 || last > -1<<62 {
				found = append(found, Found{At: p.TopicPartition, Unproven: true, What: p.skipped(next, r.from) + ", unless rows that say otherwise were dropped"})
			}
		default:
			found = append(found, Found{At: p.TopicPartition, Gone: r.from > next, First: max(next, 0), Last: r.from - 1, What: p.skipped(next, r.from)})
		}
		next, last = r.to, r.last
	}
	if p.Next != next && !explained(p.Next) {
		would := "skip"
		if p.Next < next {
			would = "record again"
		}
		found = append(found, Found{At: p.TopicPartition, First: max(min(next, p.Next), 0), Last: max(next, p.Next) - 1,
			What: fmt.Sprintf("stream_offsets says that recording %s continues at offset %d, and the log has recorded it up to offset %d: recorders would %s what is between", p.TopicPartition, p.Next, next, would)})
	}
	return found
}

// skipped says that recording did not continue where it had ended.
func (p *Partition) skipped(next, from int64) string {
	if from < next {
		return fmt.Sprintf("recording %s continued at offset %d after it had come to %d, and no recorder has signed why: stream_offsets was set back by hand, and records were recorded twice", p.TopicPartition, max(from, 0), next)
	}
	return fmt.Sprintf("the records %d to %d of %s were skipped, and the log has no row about a hole there: stream_offsets was set forward by hand", max(next, 0), from-1, p.TopicPartition)
}
