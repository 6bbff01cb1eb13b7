package recorder

import "github.com/batchyard/batchyard/task"

// chunk is the records of one transaction: consecutive records of some partitions.
type chunk []*entry

// unit is the smallest thing that can be recorded or refused: an event or a result.
type unit struct {
	entry *entry
	index int // into entry.events; -1: the result
}

const resultIndex = -1

// rows returns how many audit rows the chunk makes at most.
func (c chunk) rows() (n int) {
	for _, e := range c {
		n += e.rows()
	}
	return n
}

// first returns the first records of the chunk, at most so many rows but at least one record.
func (c chunk) first(rows int) chunk {
	for i, e := range c {
		if rows -= e.rows(); rows < 0 {
			return c[:max(i, 1)]
		}
	}
	return c
}

func (c chunk) units() []unit {
	n := 0
	for _, e := range c {
		n += len(e.events) + 1
	}
	us := make([]unit, 0, n)
	for _, e := range c {
		for i := range e.events {
			us = append(us, unit{e, i})
		}
		if e.result != nil {
			us = append(us, unit{e, resultIndex})
		}
	}
	return us
}

// offered is a result that a chunk offers: it is taken if it is the first of its task.
type offered struct {
	entry *entry
	r     *task.Result
}

// offers returns the results among units.
func offers(us []unit) (all []offered) {
	for _, u := range us {
		if u.index == resultIndex {
			all = append(all, offered{u.entry, u.entry.result})
		}
	}
	return all
}
