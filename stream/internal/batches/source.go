package batches

import (
	"encoding/binary"
	"errors"
	"hash"
	"io"
)

// errCut reports that the bytes end before a record does.
var errCut = errors.New("its bytes end within a record")

// windowSize is how many decompressed bytes are buffered.
const windowSize = 64 << 10

// source reads the bytes of a batch's records: those of a slice, or what a decompressor makes of it.
type source struct {
	buf      []byte
	pos, end int
	from     io.Reader // nil: buf holds everything
	read     int64     // bytes before buf[0]
}

// at returns the number of bytes that were consumed.
func (s *source) at() int64 { return s.read + int64(s.pos) }

// fill reads more bytes into an empty buffer.
func (s *source) fill() error {
	if s.from == nil {
		return errCut
	}
	s.read += int64(s.end)
	s.pos, s.end = 0, 0
	for range 100 { // a decompressor that returns nothing is broken
		n, err := s.from.Read(s.buf)
		if n > 0 {
			s.end = n
			return nil
		}
		if errors.Is(err, io.EOF) {
			return errCut
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

func (s *source) byteField() (int64, error) {
	if s.pos == s.end {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	b := s.buf[s.pos]
	s.pos++
	return int64(b), nil
}

var errVarint = errors.New("a number in it has too many bytes")

// varint reads a zigzag-encoded number.
func (s *source) varint() (int64, error) {
	if s.end-s.pos >= binary.MaxVarintLen64 {
		v, n := binary.Varint(s.buf[s.pos:s.end])
		if n <= 0 {
			return 0, errVarint
		}
		s.pos += n
		return v, nil
	}
	var u uint64
	for shift := 0; shift < 64; shift += 7 {
		b, err := s.byteField()
		if err != nil {
			return 0, err
		}
		u |= uint64(b&0x7f) << shift //nolint:gosec // seven bits
		if b < 0x80 {
			return int64(u>>1) ^ -int64(u&1), nil //nolint:gosec // zigzag
		}
	}
	return 0, errVarint
}

// readFull fills dst.
func (s *source) readFull(dst []byte) error {
	for len(dst) > 0 {
		if s.pos == s.end {
			if err := s.fill(); err != nil {
				return err
			}
		}
		n := copy(dst, s.buf[s.pos:s.end])
		s.pos += n
		dst = dst[n:]
	}
	return nil
}

// grow is the size up to which memory is allocated because a length announces the bytes. Beyond, it
// grows with the bytes that come.
const grow = 256 << 10

// take returns a copy of the next n bytes after a prefix.
func (s *source) take(prefix []byte, n int64) ([]byte, error) {
	if s.from == nil && n > int64(s.end-s.pos) {
		return nil, errCut
	}
	if s.from == nil || n <= grow {
		out := make([]byte, len(prefix)+int(n))
		copy(out, prefix)
		return out, s.readFull(out[len(prefix):])
	}
	out := append(make([]byte, 0, len(prefix)+grow), prefix...)
	for total := int64(len(prefix)) + n; int64(len(out)) < total; {
		begin := len(out)
		more := min(int64(max(cap(out)-begin, begin)), total-int64(begin))
		if need := begin + int(more); need > cap(out) {
			bigger := make([]byte, begin, need)
			copy(bigger, out)
			out = bigger
		}
		out = out[:begin+int(more)]
		if err := s.readFull(out[begin:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pass skips n bytes, and hashes them unless to is nil.
func (s *source) pass(n int64, to hash.Hash) error {
	for n > 0 {
		if s.pos == s.end {
			if err := s.fill(); err != nil {
				return err
			}
		}
		some := int(min(n, int64(s.end-s.pos)))
		if to != nil {
			_, _ = to.Write(s.buf[s.pos : s.pos+some])
		}
		s.pos += some
		n -= int64(some)
	}
	return nil
}
