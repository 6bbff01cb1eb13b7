package stream

import (
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/batchyard/batchyard/stream/internal/batches"
	"github.com/batchyard/batchyard/stream/internal/message"
	"github.com/batchyard/batchyard/stream/internal/signature"
)

// Header is a key and a value that accompany a message.
type Header = message.Header

// Message is a record to be written.
type Message = message.Message

// TooLargeError reports a message that is larger than its topic allows. Retrying does not help.
type TooLargeError = message.TooLargeError

// Record is a record that was read. The reader owns its bytes.
type Record struct {
	Topic     string // without the prefix
	Partition int
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []Header
	Time      time.Time
	// Incomplete is not nil if the record could not be read as a whole. Then it has no value, and
	// perhaps neither key nor headers.
	Incomplete *Incomplete

	signer     *signature.Signer // nil for records that were not read from a topic
	origin     atomic.Uint32
	owner      *partition  // nil for records of Scan
	owned      *Ownership  // guarded by owner.mu until the record is handed out
	released   bool        // from memory, or superseded; guarded by owner.mu
	recalled   *Wanted     // nil: it was read for the first time
	tries      int         // how often it was handed out before: see Again
	superseded atomic.Bool // by a record that was handed out again in its place
}

// Incomplete says what is known about a record that is too large to be read, or about records whose
// batch cannot be decompressed or decoded.
type Incomplete struct {
	Err    error
	Size   int64    // of the value, in bytes; of a batch, its compressed size
	SHA256 [32]byte // of the same bytes
	Last   int64    // the last offset that the record stands for: more than its own if a batch is unreadable
}

// IsTooLarge reports whether the error of an [Incomplete] record is its size.
func IsTooLarge(err error) bool {
	_, ok := errors.AsType[*batches.TooLargeError](err)
	return ok
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
	return position(r.Topic, r.Partition, r.Offset)
}

func position(topic string, partition int, offset int64) string {
	return topic + "/" + strconv.Itoa(partition) + "@" + strconv.FormatInt(offset, 10)
}

// Done reports that all outputs of the record are acknowledged, so that its offset may be
// committed. It may be called more than once, from any goroutine, in any order. It does nothing
// for a record that is Lost or was set aside.
func (r *Record) Done() {
	if r.owner != nil {
		r.owner.release(r, finished)
	}
}

// Lost reports whether another member owns the record's partition now and reads the record
// again, or [Record.Again] was called, so that working on it is wasted.
func (r *Record) Lost() bool { return r.owner != nil && (r.owner.lost.Load() || r.superseded.Load()) }
