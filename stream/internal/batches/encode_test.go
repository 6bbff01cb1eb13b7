package batches

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
)

// sent is a record that a test encodes. Its value may be too large for memory.
type sent struct {
	key, value []byte
	zeros      int64 // the value is so many zeros instead
	headers    []Header
}

// batchOf is a batch that a test encodes.
type batchOf struct {
	base       int64
	kind       int16
	attributes int16 // beside the compression
	producer   int64
	zstd       []zstd.EOption
	framed     bool // snappy: in the framing of Java's library
	records    []sent
}

// encode writes a batch as a client does.
func (b batchOf) encode(t testing.TB) []byte {
	t.Helper()
	var body bytes.Buffer
	w := b.compressor(t, &body)
	for i := range b.records {
		b.records[i].encode(t, w, int64(i))
	}
	require.NoError(t, w.Close())
	return b.wrap(body.Bytes(), len(b.records))
}

// wrap puts the header of a batch before its records.
func (b batchOf) wrap(body []byte, records int) []byte {
	h := make([]byte, HeaderSize, HeaderSize+len(body))
	binary.BigEndian.PutUint64(h[atBaseOffset:], uint64(b.base))
	binary.BigEndian.PutUint32(h[atLength:], uint32(HeaderSize-lengthAfter+len(body)))
	h[atMagic] = currentMagic
	binary.BigEndian.PutUint16(h[atAttributes:], uint16(b.kind|b.attributes))
	binary.BigEndian.PutUint32(h[atLastOffsetDelta:], uint32(max(records-1, 0)))
	binary.BigEndian.PutUint64(h[atFirstTimestamp:], 1000)
	binary.BigEndian.PutUint64(h[atMaxTimestamp:], 2000)
	binary.BigEndian.PutUint64(h[atProducerID:], uint64(b.producer))
	binary.BigEndian.PutUint32(h[atRecords:], uint32(records))
	all := append(h, body...)
	binary.BigEndian.PutUint32(all[atCRC:], crc32.Checksum(all[atAttributes:], castagnoli))
	return all
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (b batchOf) compressor(t testing.TB, to *bytes.Buffer) io.WriteCloser {
	t.Helper()
	switch b.kind {
	case typeGzip:
		w, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
		require.NoError(t, err)
		return w
	case typeSnappy:
		return &snappyWriter{to: to, framed: b.framed}
	case typeLZ4:
		return lz4.NewWriter(to)
	case typeZstd:
		w, err := zstd.NewWriter(to, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, b.zstd...)...)
		require.NoError(t, err)
		return w
	}
	return nopCloser{to}
}

// snappyWriter writes one block, or blocks of 32 KiB in Java's framing.
type snappyWriter struct {
	to     *bytes.Buffer
	framed bool
	all    bytes.Buffer
}

func (s *snappyWriter) Write(p []byte) (int, error) { return s.all.Write(p) }

func (s *snappyWriter) Close() error {
	if !s.framed {
		s.to.Write(s2.EncodeSnappy(nil, s.all.Bytes()))
		return nil
	}
	s.to.Write(append(bytes.Clone(xerialHeader), 0, 0, 0, 1, 0, 0, 0, 1))
	for s.all.Len() > 0 {
		block := s2.EncodeSnappy(nil, s.all.Next(32<<10))
		s.to.Write(binary.BigEndian.AppendUint32(nil, uint32(len(block))))
		s.to.Write(block)
	}
	return nil
}

func (r *sent) encode(t testing.TB, w io.Writer, offset int64) {
	t.Helper()
	before := []byte{0}                          // attributes
	before = binary.AppendVarint(before, offset) // of time
	before = binary.AppendVarint(before, offset) // of the offset
	before = appendBytes(before, r.key, r.key == nil)
	value := int64(len(r.value)) + r.zeros
	if r.value == nil && r.zeros == 0 {
		value = -1
	}
	before = binary.AppendVarint(before, value)
	before = append(before, r.value...)
	after := binary.AppendVarint(nil, int64(len(r.headers)))
	for _, h := range r.headers {
		after = appendBytes(after, []byte(h.Key), false)
		after = appendBytes(after, h.Value, h.Value == nil)
	}
	write := func(b []byte) {
		_, err := w.Write(b)
		require.NoError(t, err)
	}
	write(binary.AppendVarint(nil, int64(len(before))+r.zeros+int64(len(after))))
	write(before)
	chunk := make([]byte, 1<<20)
	for left := r.zeros; left > 0; left -= int64(len(chunk)) {
		write(chunk[:min(left, int64(len(chunk)))])
	}
	write(after)
}

func appendBytes(b, part []byte, null bool) []byte {
	if null {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(part))), part...)
}

// all reads everything.
func all(t testing.TB, r *Reader) []*Record {
	t.Helper()
	defer r.Close()
	var out []*Record
	last := int64(math.MinInt64)
	for {
		rec, err := r.Read()
		if err == io.EOF { //nolint:errorlint // as the method says
			return out
		}
		require.NoError(t, err)
		require.Greater(t, rec.Offset, last)
		require.Greater(t, r.Next(), rec.Offset)
		last = rec.Offset
		out = append(out, rec)
	}
}
