package check

import (
	"slices"
	"time"

	"github.com/batchyard/batchyard/task"
)

// retries checks that a task ran again exactly as often as clients asked for it. Two
// retries at the same time ask for the same generation.
func (c *checker) retries() {
	for _, r := range c.h.Retries {
		id := c.known[r.Run.Key]
		if id == nil {
			continue // the clients retry only what they have submitted
		}
		switch r.Outcome {
		case Accepted:
			id.retries[r.Run.Generation] = true
		case Unknown:
			id.unclear++
		default:
		}
	}
	for key, id := range c.known {
		last := c.tasks[key].Run.Generation
		for g := range id.retries {
			if g > last && !c.inHole[key] {
				c.add(RetryLost, key, "a retry was accepted as generation %d, but the last one is %d", g, last)
			}
		}
		if last > len(id.retries)+id.unclear {
			c.add(RetryInvented, key, "it is in generation %d after %d accepted retries and %d with an unknown outcome", last, len(id.retries), id.unclear)
		}
	}
}

// identities checks that each answer is to the request that its id belongs to, that this
// request was made under the id, and that the sender of another request under the same id
// can find out from a dead letter: of its record, or, if a router let it in before
// Postgres had recorded the first one, of its result.
func (c *checker) identities() {
	dead := map[Reused]bool{}
	for _, d := range append(slices.Clone(c.h.Reused), c.h.Cancelled...) { // a cancel ends whatever was asked
		dead[d] = true
	}
	for run, row := range c.results {
		if of := c.tasks[run.Key].Print; row.Print.Differs(of) {
			c.add(WrongAnswer, run.Key, "generation %d has the answer to %s, but the id belongs to %s", run.Generation, row.Print, of)
		}
	}
	for key, id := range c.known {
		answered := c.tasks[key].Print
		if answered.IsZero() {
			continue
		}
		if _, ok := id.prints[answered]; !ok {
			c.add(WrongQuestion, key, "it answers %s, which no client asked under this id", answered)
		}
		for asked, accepted := range id.prints {
			if accepted && asked.Differs(answered) && !dead[Reused{key, asked}] && !c.inHole[key] {
				c.add(ReuseUnnoticed, key, "%s was accepted, but %s was answered, and there is no dead letter (%s)", asked, answered, id.via)
			}
		}
	}
}

// Late is how long after a result's row is written a router may still read a record of
// the same run without knowing: the row is committed with its chunk, which may take up
// to audit.write_timeout, and the router may be stopped after it has asked.
const Late = 15 * time.Second

// ranAgain checks that no task enters a router's window after it has been answered,
// unless Postgres did not answer the router.
func (c *checker) ranAgain() {
	answered := map[task.Run]time.Time{}
	for _, ch := range c.h.Changes {
		if ch.Table == "results" && ch.Op == "INSERT" && answered[ch.Run].IsZero() {
			answered[ch.Run] = ch.At
		}
	}
	for _, q := range c.h.Queued {
		if at := answered[q.Run]; !at.IsZero() && !q.Unchecked && q.At.Sub(at) > Late {
			c.add(RanAgain, q.Run.Key, "a router let it run again %.1f s after generation %d had been answered", q.At.Sub(at).Seconds(), q.Run.Generation)
		}
	}
}
