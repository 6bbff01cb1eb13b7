package batches

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// What is kept of a record that is too large to be read as a whole.
const (
	maxBrokenKey     = 16 << 10
	maxBrokenHeaders = 64 << 10
)

// minRecord is the size of the smallest record, without its length: attributes, deltas, two null
// lengths and the number of headers.
const minRecord = 6

// TooLargeError reports a record that is larger than the limit.
type TooLargeError struct{ Size, Limit int64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the record has %d bytes: at most %d can be processed", e.Size, e.Limit)
}

// batch is an open batch.
type batch struct {
	header
	raw     []byte // header included
	src     source
	release func()
	left    int // records that were not read
	err     error
	key     [256]byte // room for the key of a record
}

func openBatch(h header, raw []byte) *batch {
	b := &batch{header: h, raw: raw, left: h.records, err: h.unreadable}
	if b.err == nil {
		b.release, b.err = decompress(h.compressionType, raw[HeaderSize:], &b.src)
	}
	return b
}

func (b *batch) close() {
	if b.release != nil {
		b.release()
		b.release = nil
	}
}

// broken stands for the rest of the batch.
func (b *batch) broken(offset int64, err error) *Record {
	return &Record{
		Offset: offset, Timestamp: b.max,
		Broken: &Broken{Err: fmt.Errorf("reading the batch of offsets %d to %d: %w", b.base, b.last, err), Size: int64(len(b.raw)), SHA256: sha256.Sum256(b.raw), Last: b.last},
	}
}

// read returns the next record at or above an offset; io.EOF after the last.
func (b *batch) read(from, limit int64) (*Record, error) {
	for b.err == nil {
		if b.left <= 0 {
			b.err = io.EOF
			break
		}
		b.left--
		rec, err := b.one(from, limit)
		if err != nil {
			b.err = err
			break
		}
		if rec != nil {
			return rec, nil
		}
	}
	return nil, b.err
}

var errRecord = errors.New("the lengths in a record contradict each other")

// one reads one record; nil if its offset is lower than from.
func (b *batch) one(from, limit int64) (*Record, error) {
	size, err := b.src.varint()
	if err != nil {
		return nil, err
	}
	end := b.src.at() + size
	if size < minRecord {
		return nil, errRecord
	}
	if _, err = b.src.byteField(); err != nil { // attributes, unused
		return nil, err
	}
	timestamp, err := b.src.varint()
	if err != nil {
		return nil, err
	}
	offset, err := b.src.varint()
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > b.last-b.base {
		return nil, errRecord
	}
	rec := &Record{Offset: b.base + offset, Timestamp: b.first + timestamp}
	if b.attributes&logAppendTime != 0 {
		rec.Timestamp = b.max
	}
	left := func() int64 { return end - b.src.at() }
	switch {
	case left() < 0:
		return nil, errRecord
	case rec.Offset < from:
		return nil, b.src.pass(left(), nil)
	case size > limit:
		err = b.large(rec, size, limit, left)
	default:
		err = b.whole(rec, left)
	}
	if err == nil && left() != 0 {
		err = errRecord
	}
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// length reads the length of a field, which is -1 for null, and checks that the record has room for it.
func (b *batch) length(left func() int64) (int64, error) {
	n, err := b.src.varint()
	if err == nil && (n < -1 || n > left()) {
		err = errRecord
	}
	return n, err
}

// whole reads key, value and headers into one piece of memory.
func (b *batch) whole(rec *Record, left func() int64) error {
	keyLen, err := b.length(left)
	if err != nil {
		return err
	}
	key := b.key[:0]
	if keyLen > int64(len(b.key)) {
		if key, err = b.src.take(nil, keyLen); err != nil {
			return err
		}
	} else if keyLen > 0 {
		key = b.key[:keyLen]
		if err = b.src.readFull(key); err != nil {
			return err
		}
	}
	valueLen, err := b.length(left)
	if err != nil {
		return err
	}
	if left() < max(valueLen, 0) {
		return errRecord
	}
	all, err := b.src.take(key, left())
	if err != nil {
		return err
	}
	if keyLen >= 0 {
		rec.Key = all[:len(key):len(key)]
	}
	rest := all[len(key):]
	if valueLen >= 0 {
		rec.Value = rest[:valueLen:valueLen]
		rest = rest[valueLen:]
	}
	rec.Headers, err = parseHeaders(rest)
	return err
}

// parseHeaders reads the number of headers and the headers. Their values share the memory of b.
func parseHeaders(b []byte) ([]Header, error) {
	s := source{buf: b, end: len(b)}
	n, err := s.varint()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > int64(len(b)-s.pos)/2 { // each takes two bytes or more
		return nil, errRecord
	}
	if n == 0 {
		return nil, s.done()
	}
	field := func() ([]byte, error) {
		n, err := s.varint()
		if err != nil || n < 0 {
			return nil, err
		}
		if n > int64(s.end-s.pos) {
			return nil, errRecord
		}
		s.pos += int(n)
		return b[s.pos-int(n) : s.pos : s.pos], nil
	}
	headers := make([]Header, n)
	for i := range headers {
		key, err := field()
		if err != nil {
			return nil, err
		}
		headers[i].Key = string(key)
		if headers[i].Value, err = field(); err != nil {
			return nil, err
		}
	}
	return headers, s.done()
}

func (s *source) done() error {
	if s.pos != s.end {
		return errRecord
	}
	return nil
}

// large passes a record that is larger than the limit. It keeps the key and the headers if they are
// small, and hashes the value.
func (b *batch) large(rec *Record, size, limit int64, left func() int64) error {
	keyLen, err := b.length(left)
	if err != nil {
		return err
	}
	switch {
	case keyLen > maxBrokenKey:
		err = b.src.pass(keyLen, nil)
	case keyLen >= 0:
		rec.Key, err = b.src.take(nil, keyLen)
	}
	if err != nil {
		return err
	}
	valueLen, err := b.length(left)
	if err != nil {
		return err
	}
	if left() < max(valueLen, 0) {
		return errRecord
	}
	hash := sha256.New()
	if err := b.src.pass(max(valueLen, 0), hash); err != nil {
		return err
	}
	rec.Broken = &Broken{Err: &TooLargeError{size, limit}, Size: max(valueLen, 0), SHA256: [32]byte(hash.Sum(nil)), Last: rec.Offset}
	if left() > maxBrokenHeaders {
		return b.src.pass(left(), nil)
	}
	rest, err := b.src.take(nil, left())
	if err == nil {
		rec.Headers, err = parseHeaders(rest)
	}
	return err
}
