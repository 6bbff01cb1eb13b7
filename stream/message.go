package stream

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Header is a name and a value that travel with a message.
type Header struct {
	Key   string
	Value []byte
}

// Message is something to write.
type Message struct {
	Topic   string // one of the constants: without the prefix
	Key     string // messages of one key stay in order; empty: any partition
	Value   []byte
	Headers []Header
}

// size estimates the bytes that a message takes in a batch, from above.
func (m *Message) size() int {
	n := 32 + len(m.Key) + len(m.Value)
	for _, h := range m.Headers {
		n += 10 + len(h.Key) + len(h.Value)
	}
	return n
}

// TooLargeError says that a message is larger than its topic takes. It is never
// written, however often one tries.
type TooLargeError struct {
	Topic string
	Size  int
	Limit int64 // what the topic takes by our list; the broker's own limit may be lower
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("a message of %d bytes is larger than topic %s takes (max.message.bytes, %d as created)", e.Size, e.Topic, e.Limit)
}

// Record is something that was read. The bytes are the reader's own: nothing
// else uses them again.
type Record struct {
	Topic     string // without the prefix
	Partition int
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []Header
	Time      time.Time

	owner      *partition // nil for records of Scan
	prev, next *Record    // the unfinished records of a partition, by offset; under owner.mu
	finished   bool       // under owner.mu
	reported   bool       // as a straggler; under owner.mu
}

// recordOverhead is what a record costs beside its bytes.
const recordOverhead = 256

// size is what the record counts against the budget.
func (r *Record) size() int64 {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 40 + len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// Header returns the value of the first header of that name, or "".
func (r *Record) Header(key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// Position says where the record is: "tasks.normal/3@42".
func (r *Record) Position() string {
	return r.Topic + "/" + strconv.Itoa(r.Partition) + "@" + strconv.FormatInt(r.Offset, 10)
}

// Done says that everything that follows from the record is acknowledged: its
// offset may be committed. It may be called more than once, by any goroutine,
// in any order; for a record that is Lost it does nothing.
func (r *Record) Done() {
	if r.owner != nil {
		r.owner.done(r)
	}
}

// Lost reports whether the record's partition belongs to somebody else now, who
// reads it again: nothing more should be done for it.
func (r *Record) Lost() bool { return r.owner != nil && r.owner.lost.Load() }

// Headers of a dead letter.
const (
	HeaderDLQStage     = "dlq-stage"
	HeaderDLQReason    = "dlq-reason"
	HeaderDLQError     = "dlq-error"
	HeaderDLQTopic     = "dlq-topic"
	HeaderDLQPartition = "dlq-partition"
	HeaderDLQOffset    = "dlq-offset"
	HeaderDLQTime      = "dlq-time"
)

// maxDLQError bounds the text of the cause in a dead letter.
const maxDLQError = 1024

// DeadLetter is the message that keeps a record which cannot be processed: its
// original bytes, and headers that say which stage gave up, why (a short class
// and the error), and where the record came from. Headers of an earlier death
// are left out.
func DeadLetter(r *Record, stage, reason string, cause error) Message {
	m := Message{Topic: DLQ, Key: string(r.Key), Value: r.Value, Headers: make([]Header, 0, len(r.Headers)+7)}
	for _, h := range r.Headers {
		if !strings.HasPrefix(h.Key, "dlq-") {
			m.Headers = append(m.Headers, h)
		}
	}
	text := ""
	if cause != nil {
		text = clip(cause.Error(), maxDLQError)
	}
	add := func(key, value string) { m.Headers = append(m.Headers, Header{key, []byte(value)}) }
	add(HeaderDLQStage, stage)
	add(HeaderDLQReason, reason)
	add(HeaderDLQError, text)
	add(HeaderDLQTopic, r.Topic)
	add(HeaderDLQPartition, strconv.Itoa(r.Partition))
	add(HeaderDLQOffset, strconv.FormatInt(r.Offset, 10))
	add(HeaderDLQTime, time.Now().UTC().Format(time.RFC3339Nano))
	return m
}

// clip shortens s to at most n bytes, without cutting a character in two.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
