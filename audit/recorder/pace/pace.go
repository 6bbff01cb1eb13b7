// Package pace decides how many rows a writer puts into one transaction. A transaction that runs into a
// timeout would run into it again, so the next ones are half as large, until one passes; after a number
// of them has passed they grow again:
//
//	most ──timeout──▶ ½ ──timeout──▶ ¼ ──passed × need──▶ ½ ──passed × need──▶ most
//
// A timeout soon after growing doubles the number, so that a limit that lasts costs few timeouts.
package pace

// Bounds of the number of transactions that pass before they grow.
const (
	leastNeed = 8
	mostNeed  = 256
)

// Pace is the size of one writer's transactions. It is used by one goroutine.
type Pace struct {
	most, rows int
	passed     int // transactions of about this size, in a row
	need       int // of them before the next ones are larger
	grown      bool
}

// New returns a pace of at most so many rows per transaction.
func New(most int) *Pace { return &Pace{most: most, rows: most, need: leastNeed} }

// Rows returns how many rows the next transaction may have.
func (p *Pace) Rows() int { return p.rows }

// TimedOut notes that a transaction with so many rows ran into a timeout.
func (p *Pace) TimedOut(rows int) {
	p.rows, p.passed = (min(p.rows, max(rows, 1))+1)/2, 0
	if p.grown {
		p.need, p.grown = min(2*p.need, mostNeed), false
	}
}

// Passed notes that a transaction with so many rows was committed. Only one of about the size that is
// allowed says that a larger one may pass, too.
func (p *Pace) Passed(rows int) {
	if 2*rows < p.rows {
		return
	}
	if p.passed++; p.passed < p.need {
		return
	}
	if p.grown { // it was right to grow
		p.need = max(p.need/2, leastNeed)
	}
	p.passed, p.grown = 0, p.rows < p.most
	p.rows = min(2*p.rows, p.most)
}
