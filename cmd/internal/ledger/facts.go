package ledger

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

// A fact about a task is one entry of the sorter: tenant, 0, id, 0, kind, and the data of
// that kind. Sorting brings all facts of a task together. Neither name can contain a zero
// byte: Postgres cannot store it, and every stage refuses it.

// Kinds of facts about a task, in the order in which they are sorted.
const (
	factRecord   = 'A' // a record in tasks.*
	factParked   = 'B' // a record in tasks.parked
	factOnTheWay = 'C' // an assignment or batch that is not finished
	factDead     = 'D' // a dead letter
	factOffered  = 'E' // a result in the topic
	factResult   = 'F' // its row in results
	factState    = 'G' // its row in tasks
	factCallback = 'H' // its row in callbacks
)

// Flags of a fact.
const (
	flagUnfinished = 1 << iota // its stage has not finished the record
	flagWentBack               // the record was written during the check
	flagLater                  // the recorder has not read it yet
	flagMissed                 // the recorder never will: it is in a hole
	flagCallback               // the result names a callback
	flagOddID                  // the id of the callback is wrong
)

// position is a place in a topic.
type position struct {
	topic     byte // index in stream.Topics
	partition uint32
	offset    uint64
}

func (p position) String() string {
	return stream.Topics[p.topic].Name + "/" + strconv.Itoa(int(p.partition)) + "@" + strconv.FormatUint(p.offset, 10)
}

// topicIndex returns the index of a topic in stream.Topics; false if it is unknown.
func topicIndex(name string) (byte, bool) {
	for i, t := range stream.Topics {
		if t.Name == name {
			return byte(i), true
		}
	}
	return 0, false
}

// end identifies one result among those of a task, as the recorder does.
type end struct {
	state   byte // index in task.States
	attempt uint32
	at      int64 // microseconds
}

func stateIndex(s task.State) byte {
	for i, known := range task.States {
		if known == s {
			return byte(i)
		}
	}
	return 0xff
}

func (e end) name() task.State {
	if int(e.state) < len(task.States) {
		return task.States[e.state]
	}
	return ""
}

// fact is a decoded entry.
type fact struct {
	kind  byte
	flags byte
	where position // of records
	end   end      // of results, and the state of a row in tasks
	topic byte     // of a row: the one that the task belongs to by its priority, as an index in back
	since int64    // of a row: when the task was submitted, in microseconds; 0: unknown
	taken int64    // of a row: when it was written, in microseconds
}

// nameable reports whether the key can be part of a fact.
func nameable(k task.Run) bool {
	return k.Tenant != "" && k.ID != "" && len(k.Tenant)+len(k.ID) < maxEntry/2 &&
		bytes.IndexByte([]byte(k.Tenant), 0) < 0 && !bytes.ContainsAny([]byte(k.ID), string([]byte{0, generationMark}))
}

// generationMark separates a task's id from the number of its generation, if that is not the first.
const generationMark = 1

// appendFact encodes a fact about a task.
func appendFact(b []byte, k task.Run, f *fact) []byte {
	b = append(b, k.Tenant...)
	b = append(b, 0)
	b = append(b, k.ID...)
	if k.Generation > 0 {
		b = strconv.AppendInt(append(b, generationMark), int64(k.Generation), 10)
	}
	b = append(b, 0, f.kind, f.flags)
	switch f.kind {
	case factRecord, factParked, factOnTheWay, factDead:
		b = appendPosition(b, f.where)
	case factOffered:
		b = appendEnd(appendPosition(b, f.where), f.end)
	case factResult:
		b = append(appendEnd(b, f.end), f.topic)
		b = binary.BigEndian.AppendUint64(b, uint64(f.since))
		b = binary.BigEndian.AppendUint64(b, uint64(f.taken))
	case factState:
		b = append(b, f.end.state, f.topic)
		b = binary.BigEndian.AppendUint64(b, uint64(f.since))
		b = binary.BigEndian.AppendUint64(b, uint64(f.taken))
	}
	return b
}

func appendPosition(b []byte, p position) []byte {
	b = append(b, p.topic)
	b = binary.BigEndian.AppendUint32(b, p.partition)
	return binary.BigEndian.AppendUint64(b, p.offset)
}

const positionSize = 13

func readPosition(b []byte) position {
	return position{b[0], binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint64(b[5:])}
}

func appendEnd(b []byte, e end) []byte {
	b = append(b, e.state)
	b = binary.BigEndian.AppendUint32(b, e.attempt)
	return binary.BigEndian.AppendUint64(b, uint64(e.at))
}

const endSize = 13

func readEnd(b []byte) end {
	return end{b[0], binary.BigEndian.Uint32(b[1:]), int64(binary.BigEndian.Uint64(b[5:]))}
}

// splitFact decodes an entry into the task's name, with its zero bytes, and the fact.
func splitFact(b []byte) (name []byte, f fact) {
	first := bytes.IndexByte(b, 0)
	second := first + 1 + bytes.IndexByte(b[first+1:], 0)
	name, rest := b[:second+1], b[second+1:]
	f.kind, f.flags, rest = rest[0], rest[1], rest[2:]
	switch f.kind {
	case factRecord, factParked, factOnTheWay, factDead:
		f.where = readPosition(rest)
	case factOffered:
		f.where, f.end = readPosition(rest), readEnd(rest[positionSize:])
	case factResult:
		f.end, f.topic = readEnd(rest), rest[endSize]
		f.since = int64(binary.BigEndian.Uint64(rest[endSize+1:]))
		f.taken = int64(binary.BigEndian.Uint64(rest[endSize+9:]))
	case factState:
		f.end.state, f.topic = rest[0], rest[1]
		f.since = int64(binary.BigEndian.Uint64(rest[2:]))
		f.taken = int64(binary.BigEndian.Uint64(rest[10:]))
	}
	return name, f
}

func keyOf(name []byte) task.Run {
	tenant, id, _ := bytes.Cut(name[:len(name)-1], []byte{0})
	id, generation, _ := bytes.Cut(id, []byte{generationMark})
	n, _ := strconv.Atoi(string(generation)) // 0 for the first
	return task.Run{Key: task.Key{Tenant: string(tenant), ID: string(id)}, Generation: n}
}

// A note is a fact about a position in events, results or a topic of tasks: topic,
// partition, offset, kind, a number and a digest.

// Kinds of notes.
const (
	noteExpected   = 'a' // the record becomes n audit rows
	noteAtMost     = 'b' // the record becomes at most n: audit.retention dropped some, or the recorder missed it
	noteUnreadable = 'c' // the record is unreadable and finished, so it must be a dead letter
	noteDead       = 'd' // its dead letter holds n events
	noteRow        = 'e' // an audit row; n is its index within the record
)

type note struct {
	where  position
	kind   byte
	n      uint32
	digest uint64
}

func appendNote(b []byte, n *note) []byte {
	b = append(appendPosition(b, n.where), n.kind)
	b = binary.BigEndian.AppendUint32(b, n.n)
	return binary.BigEndian.AppendUint64(b, n.digest)
}

func readNote(b []byte) note {
	rest := b[positionSize:]
	return note{readPosition(b), rest[0], binary.BigEndian.Uint32(rest[1:]), binary.BigEndian.Uint64(rest[5:])}
}

// facts collects facts about tasks and notes about positions.
type facts struct {
	tasks     *sorter
	positions *sorter
	buf       []byte
}

func newFacts(dir string, memory int) *facts {
	return &facts{tasks: newSorter(dir, memory), positions: newSorter(dir, memory)}
}

func (s *facts) close() {
	s.tasks.close()
	s.positions.close()
}

func (s *facts) add(k task.Run, f fact) error {
	s.buf = appendFact(s.buf[:0], k, &f)
	return s.tasks.add(s.buf)
}

func (s *facts) note(n note) error {
	s.buf = appendNote(s.buf[:0], &n)
	return s.positions.add(s.buf)
}
