package ledger

import (
	"bytes"
	"fmt"
	"time"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// skew is how far clocks may differ when deciding whether retention may have removed a
// record.
const skew = 10 * time.Minute

// account holds the facts about one task.
type account struct {
	accepted      bool
	record, dead  position // the position of one of them
	isDead        bool
	where         string // the last stage on its path that has it; empty: none
	offered       []fact // results in the topic, at most mostOffered
	offers        int
	result, state fact
	hasResult     bool
	hasState      bool
	callbacks     int
	oddCallback   bool
	later         bool // a result is not recorded yet
	laterAt       int64
	passed        position
	wasPassed     bool // the recorder has read a result
	differ        bool // it has read results that differ
}

// mostOffered limits how many results of one task are kept.
const mostOffered = 64

// judgeTasks judges every task.
func (l *look) judgeTasks() error {
	var name []byte
	a := &account{}
	err := l.facts.tasks.each(func(b []byte) error {
		n, f := splitFact(b)
		if !bytes.Equal(n, name) {
			if name != nil {
				if err := l.judge(keyOf(name), a); err != nil {
					return err
				}
			}
			name = append(name[:0], n...)
			*a = account{offered: a.offered[:0]}
		}
		if a.full(&f) {
			return l.facts.note(note{where: f.where, kind: noteAtMost, n: 1}) // whether it is a duplicate is unknown
		}
		a.take(&f)
		return nil
	})
	if err == nil && name != nil {
		err = l.judge(keyOf(name), a)
	}
	return err
}

// full reports whether a result was read that take would not keep. It counts as offered.
func (a *account) full(f *fact) bool {
	if f.kind != factOffered || f.flags&flagLater != 0 || len(a.offered) < mostOffered {
		return false
	}
	a.offers++
	return true
}

// take adds a fact. Facts come in the order of their kinds.
func (a *account) take(f *fact) {
	switch f.kind {
	case factRecord, factParked:
		if !a.accepted {
			a.accepted, a.record = true, f.where
		}
		if f.flags != 0 {
			a.where = "router"
			if f.kind == factParked {
				a.where = "router, parked"
			}
		}
	case factOnTheWay:
		a.where = "batcher"
		if stream.Topics[f.where.topic].Name == stream.Batches {
			a.where = "workers"
		}
	case factDead:
		a.isDead, a.dead = true, f.where
	case factOffered:
		a.offers++
		if f.flags&flagLater != 0 {
			a.later, a.laterAt = true, f.end.at
			return
		}
		if f.flags&flagMissed != 0 {
			a.offered = append(a.offered, *f)
			return
		}
		if a.wasPassed && len(a.offered) > 0 && a.offered[0].end != f.end {
			a.differ = true
		}
		a.wasPassed, a.passed = true, f.where
		a.offered = append(a.offered, *f)
	case factResult:
		a.hasResult, a.result = true, *f
	case factState:
		a.hasState, a.state = true, *f
	case factCallback:
		a.callbacks++
		a.oddCallback = a.oddCallback || f.flags&flagOddID != 0
	}
}

// whole reports whether the topics must still have the records of a row with these times.
func (l *look) whole(topics []string, times ...int64) bool {
	var since int64
	for _, topic := range topics {
		since = max(since, l.since[topic])
	}
	if since == 0 {
		return true
	}
	for _, t := range times {
		if t < since+skew.Microseconds() {
			return false
		}
	}
	return true
}

// judge counts one task and reports its problems.
func (l *look) judge(k task.Run, a *account) error {
	wrong := func(kind Kind, at, format string, args ...any) bool {
		return l.r.wrong(l.before, Problem{Kind: kind, Tenant: k.Tenant, TaskID: k.ID, Generation: k.Generation, At: at, What: fmt.Sprintf(format, args...)})
	}
	if a.accepted {
		l.r.Accepted++
	}
	if a.hasResult {
		if a.accepted {
			l.r.Terminal++
			l.r.ByState[string(a.result.end.name())]++
		} else if l.whole(back, a.result.since, a.result.taken) && !l.isGone(a.result.topic, a.result.since) {
			wrong(ResultUnknown, "", "ended as %s, but no topic of tasks has a record of it", a.result.end.name())
		} else {
			l.r.Older++
		}
		return l.judgeResult(k, a, wrong)
	}
	lost := false
	switch {
	case a.later:
		a.where = "recorder"
		if !a.accepted && !a.hasState && l.since[stream.TasksHigh]+l.since[stream.TasksNormal]+l.since[stream.TasksLow]+l.since[stream.TasksParked] == 0 && !l.isGone(byte(len(back)), a.laterAt) {
			wrong(ResultUnknown, "", "the results topic has a result, but no topic of tasks has a record of it")
		}
	case a.isDead:
	case a.wasPassed:
		lost = wrong(NotTaken, a.passed.String(), "%s, but the table results has no row", offersText(a))
	case a.where != "":
	case a.accepted:
		lost = wrong(Missing, a.record.String(), "accepted, but it has no result, no unfinished record and no dead letter%s", stateText(a))
	}
	if a.hasState {
		l.judgeState(a, wrong)
	}
	if a.callbacks > 0 {
		wrong(CallbackStray, "", "the table callbacks has a row, but results has none")
	}
	switch {
	case !a.accepted:
	case lost:
		l.r.Missing++
	case a.where != "":
		l.r.InFlight++
		l.r.Where[a.where]++
	case a.isDead:
		l.r.Dead++
	default: // the previous pass did not report it, so it is moving
		l.r.InFlight++
		l.r.Where["moving"]++
	}
	return nil
}

func offersText(a *account) string {
	if a.differ {
		return fmt.Sprintf("%d different results are in the topic", a.offers)
	}
	return "its result is in the topic"
}

func stateText(a *account) string {
	if !a.hasState {
		return "; the table tasks has no row"
	}
	return "; the table tasks says " + string(a.state.end.name())
}

type complain func(kind Kind, at, format string, args ...any) bool

// judgeState checks the row in tasks of a task without a result.
func (l *look) judgeState(a *account, wrong complain) {
	switch state := a.state.end.name(); {
	case state.Terminal():
		wrong(StateWrong, "", "the table tasks says %s, but results has no row", state)
	case !a.accepted && !a.later && !a.wasPassed && !a.isDead && a.where == "" && a.state.since > 0 && l.whole(back, a.state.since, a.state.taken) && !l.isGone(a.state.topic, a.state.since):
		wrong(StateUnknown, "", "the table tasks says %s, but no topic of tasks has a record of it", state)
	}
}

// judgeResult checks a task that has a result.
func (l *look) judgeResult(k task.Run, a *account, wrong complain) error {
	match := false
	for i := range a.offered {
		o := &a.offered[i]
		if o.end == a.result.end {
			match = true
			continue
		}
		// Another result came first, and an audit row records this duplicate.
		n := note{where: o.where, kind: noteExpected, n: 1}
		if time.UnixMicro(o.end.at).Before(l.cut) || o.flags&flagMissed != 0 {
			n.kind = noteAtMost
		}
		if err := l.facts.note(n); err != nil {
			return err
		}
	}
	if !match && a.offers <= mostOffered && l.whole([]string{stream.Results}, a.result.end.at, a.result.taken) {
		wrong(Changed, "", "the table results says %s, attempt %d, at %s; the topic has %d results of the task, but not this one",
			a.result.end.name(), a.result.end.attempt, time.UnixMicro(a.result.end.at).UTC().Format(time.RFC3339Nano), a.offers)
	}
	switch {
	case !a.hasState:
		wrong(StateWrong, "", "the table results says %s, but tasks has no row", a.result.end.name())
	case a.state.end.state != a.result.end.state:
		wrong(StateWrong, "", "the table results says %s, but tasks says %s", a.result.end.name(), a.state.end.name())
	}
	switch due := a.result.flags&flagCallback != 0; {
	case a.callbacks > 1:
		wrong(CallbackTwice, "", "the table callbacks has %d rows", a.callbacks)
	case a.oddCallback:
		wrong(CallbackTwice, "", "the id of its callback is wrong: the receiver cannot recognize repeated deliveries")
	case due && a.callbacks == 0:
		wrong(CallbackMissing, "", "its result names a callback, but the table callbacks has no row")
	case !due && a.callbacks > 0:
		wrong(CallbackStray, "", "the table callbacks has a row, but its result names no callback")
	}
	return nil
}

// spot holds the notes of one position.
type spot struct {
	where      position
	expected   int64 // audit rows; -1: unknown
	atMost     bool
	unreadable bool
	isDead     bool
	dead       int64
	digest     uint64
	rows       int64 // distinct
	twice      int64
	last       int64
}

// judgePositions judges every position.
func (l *look) judgePositions() error {
	s := spot{}
	started := false
	err := l.facts.positions.each(func(b []byte) error {
		n := readNote(b)
		if !started || n.where != s.where {
			if started {
				l.judgeSpot(&s)
			}
			s, started = spot{where: n.where, expected: -1, last: -1}, true
		}
		s.take(&n)
		return nil
	})
	if started {
		l.judgeSpot(&s)
	}
	return err
}

// take adds a note. Notes of a kind come in the order of their numbers.
func (s *spot) take(n *note) {
	switch n.kind {
	case noteExpected:
		s.expected = int64(n.n)
	case noteAtMost:
		s.expected, s.atMost = int64(n.n), true
	case noteUnreadable:
		s.unreadable = true
	case noteDead:
		// A stage that dies before it finishes the record writes the same dead letter again.
		if !s.isDead || n.digest != s.digest {
			s.dead += int64(n.n)
		}
		s.isDead, s.digest = true, n.digest
	case noteRow:
		if int64(n.n) == s.last {
			s.twice++
		} else {
			s.rows++
		}
		s.last = int64(n.n)
	}
}

func (l *look) judgeSpot(s *spot) {
	at := s.where.String()
	wrong := func(kind Kind, format string, args ...any) bool {
		return l.r.wrong(l.before, Problem{Kind: kind, At: at, What: fmt.Sprintf(format, args...)})
	}
	topic := stream.Topics[s.where.topic].Name
	ofTasks := topic != stream.Results && topic != stream.Events
	if s.unreadable {
		lost := !s.isDead && wrong(RecordLost, "the record is unreadable and finished, but it is not a dead letter")
		if ofTasks {
			l.r.Accepted++
			switch {
			case lost:
				l.r.Missing++
			case s.isDead:
				l.r.Dead++
			default:
				l.r.InFlight++
				l.r.Where["moving"]++
			}
		}
	}
	if ofTasks {
		return
	}
	expected := max(s.expected, 0)
	if topic == stream.Events {
		l.r.Events.Expected += expected
		l.r.Events.Rows += s.rows + s.twice
		l.r.Events.Dead += s.dead
	} else {
		l.r.Events.Duplicates += s.rows + s.twice
	}
	if s.twice > 0 {
		wrong(EventTwice, "%d extra audit rows", s.twice)
	}
	switch {
	case s.last >= expected && s.rows > 0:
		wrong(EventStray, "%d audit rows, but the record holds %d events", s.rows, expected)
	case !s.atMost && s.rows+s.dead < expected:
		wrong(EventMissing, "%d of %d audit rows%s", s.rows, expected, deadText(s.dead))
	}
}

func deadText(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %d events are dead letters", n)
}
