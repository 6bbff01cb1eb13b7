// Package batches reads record batches as brokers store them, in bounded memory.
//
// A few compressed kilobytes may hold gigabytes. A [Reader] therefore decompresses as it goes: it
// holds the compressed bytes, a window of what they decompress to, and one record. A record that is
// larger than a limit is never in memory as a whole; what is left of it is its key, headers, size and
// hash ([Broken]). A batch that cannot be decompressed or decoded is replaced in the same way, so
// that a reader always gets past it.
//
// Records of aborted transactions are left out.
package batches

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// HeaderSize is the size of a batch's header, in bytes.
const HeaderSize = 61

// Offsets of the fields in a batch's header.
const (
	atBaseOffset      = 0
	atLength          = 8 // of what follows
	atMagic           = 16
	atCRC             = 17
	atAttributes      = 21 // the CRC covers everything from here on
	atLastOffsetDelta = 23
	atFirstTimestamp  = 27
	atMaxTimestamp    = 35
	atProducerID      = 43
	atRecords         = 57

	lengthAfter = 12 // the length counts from here
)

// Attributes of a batch.
const (
	compressionMask = 0x07
	logAppendTime   = 0x08
	transactional   = 0x10
	control         = 0x20
)

// ErrChecksum reports a batch that was damaged on its way or on the broker's disk.
var ErrChecksum = errors.New("the checksum of a record batch does not match")

// Record is a record as it is in the log. Its bytes are its own.
type Record struct {
	Offset     int64
	Timestamp  int64  // in milliseconds
	Key, Value []byte // nil: null
	Headers    []Header
	Broken     *Broken // not nil: the record is not complete
}

// Header is a header of a record.
type Header struct {
	Key   string
	Value []byte
}

// Broken says what is known about a record that was not read as a whole, or about the rest of a
// batch that cannot be read.
type Broken struct {
	Err    error
	Size   int64    // of the value; of a batch, its compressed size
	SHA256 [32]byte // of the same bytes
	Last   int64    // the last offset that this stands for
}

// Aborted is an aborted transaction: the producer's batches from an offset on, up to the marker that
// ends it.
type Aborted struct{ ProducerID, First int64 }

// Limits bound the memory of a Reader.
type Limits struct {
	Record int64 // the size of a record that is read as a whole
}

// Reader iterates over the records of consecutive batches. Close it when it is no longer needed. It
// must not be used by several goroutines at once.
type Reader struct {
	raw     []byte // batches not begun yet
	limits  Limits
	aborted []Aborted      // not reached yet, in the order of their first offsets
	aborts  map[int64]bool // producers whose batches belong to an aborted transaction
	next    int64          // every offset below was returned or has no record
	batches int
	open    *batch
}

// NewReader returns a reader of what a broker sent from an offset on. The reader keeps raw.
func NewReader(raw []byte, from int64, aborted []Aborted, limits Limits) *Reader {
	r := &Reader{raw: raw, limits: limits, aborted: slices.Clone(aborted), aborts: map[int64]bool{}, next: from}
	slices.SortStableFunc(r.aborted, func(a, b Aborted) int { return int(min(max(a.First-b.First, -1), 1)) })
	return r
}

// Next returns the next offset to read once the records returned so far are handled.
func (r *Reader) Next() int64 { return r.next }

// Batches returns how many whole batches were begun. Without any, the broker sent less than one.
func (r *Reader) Batches() int { return r.batches }

// Close releases memory for other readers.
func (r *Reader) Close() {
	if r.open != nil {
		r.open.close()
		r.open = nil
	}
	r.raw = nil
}

// Read returns the next record at or above the offset that the reader started at; io.EOF when there
// are no more. After any other error, the reader must not be used.
func (r *Reader) Read() (*Record, error) {
	for {
		if r.open == nil {
			if err := r.begin(); err != nil {
				return nil, err
			}
			continue
		}
		b := r.open
		rec, err := b.read(r.next, r.limits.Record)
		switch {
		case errors.Is(err, io.EOF):
			r.end(b.last + 1)
		case err != nil:
			rec = b.broken(max(r.next, b.base), err)
			r.end(b.last + 1)
			return rec, nil
		default:
			if r.next = rec.Offset + 1; b.left == 0 {
				r.end(b.last + 1)
			}
			return rec, nil
		}
	}
}

// end closes the open batch and continues at an offset.
func (r *Reader) end(next int64) {
	r.open.close()
	r.open = nil
	r.next = max(r.next, next)
}

// begin opens the next batch that may hold records to return; io.EOF without one.
func (r *Reader) begin() error {
	if len(r.raw) < lengthAfter {
		return io.EOF
	}
	length := int64(int32(binary.BigEndian.Uint32(r.raw[atLength:]))) //nolint:gosec // as the format defines it
	if length > int64(len(r.raw)-lengthAfter) {
		return io.EOF // the broker cut it off
	}
	if length < atAttributes-lengthAfter {
		return fmt.Errorf("a record batch has a length of %d bytes", length)
	}
	raw := r.raw[:lengthAfter+length]
	r.raw = r.raw[len(raw):]
	r.batches++
	h, err := parseHeader(raw)
	if err != nil {
		return err
	}
	switch {
	case h.attributes&control != 0:
		// The transaction that the marker ends may have begun before the first batch of this answer. Left
		// in the list, it would hide the producer's next transaction.
		r.reach(h.last)
		if isAbortMarker(raw[HeaderSize:]) {
			delete(r.aborts, h.producer)
		}
		r.next = max(r.next, h.last+1)
	case h.last < r.next:
	case r.isAborted(h):
		r.next = h.last + 1
	default:
		r.open = openBatch(h, raw)
	}
	return nil
}

// isAborted reports whether a batch belongs to an aborted transaction.
func (r *Reader) isAborted(h header) bool {
	if h.attributes&transactional == 0 {
		return false
	}
	r.reach(h.last)
	return r.aborts[h.producer]
}

// reach notes the aborted transactions that begin at or below an offset.
func (r *Reader) reach(offset int64) {
	for len(r.aborted) > 0 && r.aborted[0].First <= offset {
		r.aborts[r.aborted[0].ProducerID] = true
		r.aborted = r.aborted[1:]
	}
}

// header is what the header of a batch says.
type header struct {
	base, last      int64
	attributes      int16
	first, max      int64 // timestamps
	producer        int64
	records         int
	unreadable      error // the batch has another format
	compressionType byte
}

// Older formats store single messages, with a header of another layout. Only the offset, at the same
// place, is read.
const currentMagic = 2

func parseHeader(raw []byte) (header, error) {
	u64 := func(at int) int64 { return int64(binary.BigEndian.Uint64(raw[at:])) } //nolint:gosec // as the format defines it
	h := header{base: u64(atBaseOffset)}
	if magic := raw[atMagic]; magic != currentMagic {
		h.last = h.base
		h.unreadable = fmt.Errorf("it has the record format v%d: only v2 is supported, which brokers use unless log.message.format.version says otherwise", magic)
		return h, nil
	}
	if len(raw) < HeaderSize {
		return h, fmt.Errorf("a record batch has only %d bytes", len(raw))
	}
	if crc := crc32.Checksum(raw[atAttributes:], castagnoli); crc != binary.BigEndian.Uint32(raw[atCRC:]) {
		return h, fmt.Errorf("%w at offset %d", ErrChecksum, h.base)
	}
	h.attributes = int16(binary.BigEndian.Uint16(raw[atAttributes:])) //nolint:gosec // as the format defines it
	delta := int32(binary.BigEndian.Uint32(raw[atLastOffsetDelta:]))  //nolint:gosec // as the format defines it
	h.last = h.base + int64(max(delta, 0))
	h.first, h.max, h.producer = u64(atFirstTimestamp), u64(atMaxTimestamp), u64(atProducerID)
	h.records = int(int32(binary.BigEndian.Uint32(raw[atRecords:]))) //nolint:gosec // as the format defines it
	h.compressionType = byte(h.attributes & compressionMask)
	return h, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// isAbortMarker reports whether the record of a control batch says that its transaction was aborted.
func isAbortMarker(records []byte) bool {
	s := source{buf: records, end: len(records)}
	for _, field := range []func() (int64, error){s.varint, s.byteField, s.varint, s.varint} { // length, attributes, time and offset
		if _, err := field(); err != nil {
			return false
		}
	}
	n, err := s.varint()
	if err != nil || n < 4 || int64(s.end-s.pos) < n {
		return false
	}
	const abort = 0
	return binary.BigEndian.Uint16(s.buf[s.pos+2:]) == abort // after its version
}

// Length returns the size of a batch, which its header announces.
func Length(header []byte) int64 {
	return lengthAfter + int64(int32(binary.BigEndian.Uint32(header[atLength:]))) //nolint:gosec // as the format defines it
}

// Oversized stands for the records of a batch that is too large to be held, compressed as it is. sum
// is the hash of all its bytes.
func Oversized(header []byte, sum [32]byte) *Record {
	u64 := func(at int) int64 { return int64(binary.BigEndian.Uint64(header[at:])) } //nolint:gosec // as the format defines it
	base := u64(atBaseOffset)
	delta := int32(binary.BigEndian.Uint32(header[atLastOffsetDelta:])) //nolint:gosec // as the format defines it
	size := Length(header)
	return &Record{
		Offset: base, Timestamp: u64(atMaxTimestamp),
		Broken: &Broken{Err: fmt.Errorf("the batch of offsets %d to %d has %d bytes: it is too large to be read", base, base+int64(max(delta, 0)), size), Size: size, SHA256: sum, Last: base + int64(max(delta, 0))},
	}
}
