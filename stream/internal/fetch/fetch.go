// Package fetch asks a broker for records and leaves them compressed: kafka-go would decompress everything
// into memory first.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchAPI "github.com/segmentio/kafka-go/protocol/fetch"

	"github.com/batchyard/batchyard/stream/internal/batches"
)

// Request says what to read from one partition.
type Request struct {
	ClientID  string
	Topic     string // with the prefix
	Partition int
	From      int64
	MaxBytes  int64
	MaxWait   time.Duration // how long the broker waits for records
}

// Answer is what the broker says.
type Answer struct {
	Highest   int64 // one above the last record of the log
	Stable    int64 // one above the last record that may be read: transactions that are open begin here
	Aborted   []batches.Aborted
	Records   []byte
	Oversized *batches.Record // in place of Records: the first batch is too large to be held

	err error
}

// exchange is a request on its way.
type exchange struct {
	*fetchAPI.Request
	clientID string
	version  int16
}

// ApiKey implements protocol.Message.
func (a *Answer) ApiKey() protocol.ApiKey { return protocol.Fetch }

// readCommitted leaves out what belongs to open transactions, and lists the aborted ones.
const readCommitted = 1

// minFetchVersion is the first with records of the current format.
const minFetchVersion = 4

// MaxBatch is the largest batch that is held in memory, compressed.
const MaxBatch = 68 << 20

// Do sends a request to the partition's leader.
func Do(ctx context.Context, transport *kafka.Transport, addr net.Addr, req Request) (*Answer, error) {
	res, err := transport.RoundTrip(ctx, addr, &exchange{clientID: req.ClientID, Request: &fetchAPI.Request{
		ReplicaID: -1, MaxWaitTime: int32(req.MaxWait.Milliseconds()), MinBytes: 1, MaxBytes: int32(req.MaxBytes),
		IsolationLevel: readCommitted, SessionID: -1, SessionEpoch: -1,
		Topics: []fetchAPI.RequestTopic{{Topic: req.Topic, Partitions: []fetchAPI.RequestPartition{{
			Partition: int32(req.Partition), CurrentLeaderEpoch: -1, FetchOffset: req.From, LogStartOffset: -1, PartitionMaxBytes: int32(req.MaxBytes),
		}}}},
	}})
	if err != nil {
		return nil, err
	}
	answer := res.(*Answer) //nolint:forcetypeassert // RawExchange returns no other
	return answer, answer.err
}

// Required implements protocol.RawExchanger.
func (f *exchange) Required(versions map[protocol.ApiKey]int16) bool {
	f.version = versions[protocol.Fetch]
	return true
}

var correlation atomic.Int32

// RawExchange implements protocol.RawExchanger. After an error, the library closes the connection.
func (f *exchange) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if f.version < minFetchVersion {
		return nil, errors.New("the broker is older than Kafka 0.11, which is the oldest supported version")
	}
	id := correlation.Add(1)
	if err := protocol.WriteRequest(rw, f.version, id, f.clientID, f.Request); err != nil {
		return nil, err
	}
	r := &answerReader{from: rw, left: 4}
	r.left = int64(r.int32())
	if got := r.int32(); r.err == nil && got != id {
		return nil, fmt.Errorf("the broker answered request %d instead of %d", got, id)
	}
	a := r.answer(f.version)
	if r.err == nil {
		r.skip(r.left, nil)
	}
	if errors.Is(r.err, io.EOF) {
		r.err = io.ErrUnexpectedEOF
	}
	if r.err != nil {
		return nil, fmt.Errorf("reading the answer to a fetch: %w", r.err)
	}
	return a, nil
}

// answerReader reads the fields of an answer. After an error, it returns zeros.
type answerReader struct {
	from io.Reader
	left int64 // bytes of the answer
	err  error
}

var errAnswer = errors.New("the broker's answer is malformed")

// answer reads what the broker says about the only partition of the request.
func (r *answerReader) answer(version int16) *Answer {
	a := &Answer{}
	r.int32() // throttle time
	if version >= 7 {
		a.err = asError(r.int16())
		r.int32() // session
	}
	if n := r.int32(); r.err == nil && n != 1 {
		if a.err == nil {
			r.fail()
		}
		return a
	}
	r.skip(int64(r.int16()), nil) // topic
	if n := r.int32(); r.err == nil && n != 1 {
		r.fail()
		return a
	}
	r.int32() // partition
	if err := asError(r.int16()); err != nil {
		a.err = err
	}
	a.Highest, a.Stable = r.int64(), r.int64()
	if version >= 5 {
		r.int64() // start of the log
	}
	for range r.int32() {
		if r.err != nil {
			return a
		}
		a.Aborted = append(a.Aborted, batches.Aborted{ProducerID: r.int64(), First: r.int64()})
	}
	if version >= 11 {
		r.int32() // preferred replica
	}
	r.records(a)
	return a
}

// records reads the batches. If even the first is larger than may be held, only its header is kept.
func (r *answerReader) records(a *Answer) {
	size := int64(r.int32())
	switch {
	case r.err != nil || size <= 0:
		return
	case size > r.left:
		r.fail()
		return
	case size <= MaxBatch:
		a.Records = make([]byte, size)
		r.read(a.Records)
		return
	}
	header := make([]byte, batches.HeaderSize)
	r.read(header)
	if r.err != nil {
		return
	}
	length := min(batches.Length(header), size)
	sum := sha256.New()
	_, _ = sum.Write(header)
	r.skip(length-int64(len(header)), sum)
	a.Oversized = batches.Oversized(header, [32]byte(sum.Sum(nil)))
}

func asError(code int16) error {
	if code == 0 {
		return nil
	}
	return kafka.Error(code)
}

func (r *answerReader) fail() { r.err = errAnswer }

func (r *answerReader) read(b []byte) {
	if r.err != nil {
		clear(b)
		return
	}
	if int64(len(b)) > r.left {
		r.fail()
		return
	}
	n, err := io.ReadFull(r.from, b)
	r.left -= int64(n)
	r.err = err
}

// skip passes n bytes, and hashes them unless to is nil.
func (r *answerReader) skip(n int64, to hash.Hash) {
	if n < 0 || n > r.left {
		if r.err == nil {
			r.fail()
		}
		return
	}
	if r.err != nil {
		return
	}
	w := io.Discard
	if to != nil {
		w = to
	}
	passed, err := io.CopyN(w, r.from, n)
	r.left -= passed
	r.err = err
}

func (r *answerReader) int16() int16 {
	var b [2]byte
	r.read(b[:])
	return int16(binary.BigEndian.Uint16(b[:])) //nolint:gosec // as the protocol defines it
}

func (r *answerReader) int32() int32 {
	var b [4]byte
	r.read(b[:])
	return int32(binary.BigEndian.Uint32(b[:])) //nolint:gosec // as the protocol defines it
}

func (r *answerReader) int64() int64 {
	var b [8]byte
	r.read(b[:])
	return int64(binary.BigEndian.Uint64(b[:])) //nolint:gosec // as the protocol defines it
}
