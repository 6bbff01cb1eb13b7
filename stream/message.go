package stream

import (
	"fmt"
	"strconv"
	"time"
)

// Header is a key and a value that accompany a message.
type Header struct {
	Key   string
	Value []byte
}

// Message is a record to be written.
type Message struct {
	Topic   string // one of the constants, without the prefix
	Key     string // messages with the same key stay in order; empty: any partition
	Value   []byte
	Headers []Header
}

// size returns an upper estimate of the bytes that a message takes in a batch.
func (m *Message) size() int {
	n := 32 + len(m.Key) + len(m.Value)
	for _, h := range m.Headers {
		n += 10 + len(h.Key) + len(h.Value)
	}
	return n
}

// TooLargeError reports a message that is larger than its topic allows. Retrying does not help.
type TooLargeError struct {
	Topic string
	Size  int   // of the message, in bytes
	Limit int64 // with which Batchyard creates the topic; the broker's own limit may be lower
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("a message of %d bytes exceeds max.message.bytes of topic %s (%d when Batchyard creates it)", e.Size, e.Topic, e.Limit)
}

// Record is a record that was read. The reader owns its bytes.
type Record struct {
	Topic     string // without the prefix
	Partition int
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []Header
	Time      time.Time

	owner      *partition // nil for records of Scan
	prev, next *Record    // in the list of the partition's unfinished records; guarded by owner.mu
	finished   bool       // guarded by owner.mu
	reported   bool       // as a straggler; guarded by owner.mu
}

// recordOverhead is the memory that a record takes in addition to its bytes.
const recordOverhead = 256

// size returns how many bytes of the budget the record takes.
func (r *Record) size() int64 {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 40 + len(h.Key) + len(h.Value)
	}
	return int64(n)
}

// Header returns the value of the first header with the key, or "".
func (r *Record) Header(key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// Position returns topic, partition and offset, as in "tasks.normal/3@42".
func (r *Record) Position() string {
	return r.Topic + "/" + strconv.Itoa(r.Partition) + "@" + strconv.FormatInt(r.Offset, 10)
}

// Done reports that all outputs of the record are acknowledged, so that its offset may be
// committed. It may be called more than once, from any goroutine, in any order. It does nothing
// for a record that is Lost.
func (r *Record) Done() {
	if r.owner != nil {
		r.owner.finish(r)
	}
}

// Lost reports whether another member owns the record's partition now and reads the record
// again, so that working on it is wasted.
func (r *Record) Lost() bool { return r.owner != nil && r.owner.lost.Load() }
