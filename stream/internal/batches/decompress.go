package batches

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compression types, as the attributes of a batch number them.
const (
	typeNone = iota
	typeGzip
	typeSnappy
	typeLZ4
	typeZstd
)

// decompress points a source at the records of a batch. release, if not nil, gives memory back.
func decompress(kind byte, raw []byte, to *source) (release func(), err error) {
	switch kind {
	case typeNone:
		*to = source{buf: raw, end: len(raw)}
		return nil, nil
	case typeGzip:
		return open(gzips, raw, to)
	case typeSnappy:
		return open(snappies, raw, to)
	case typeLZ4:
		return open(lz4s, raw, to)
	case typeZstd:
		return open(zstds, raw, to)
	}
	return nil, fmt.Errorf("it has the unknown compression type %d", kind)
}

// codec is a kind of decompressor, with instances to reuse.
type codec struct {
	pool  sync.Pool
	reset func(of any, raw []byte) (io.Reader, error)
}

func open(c *codec, raw []byte, to *source) (release func(), err error) {
	d := c.pool.Get()
	window, _ := windows.Get().(*[]byte)
	release = func() {
		_, _ = c.reset(d, nil) // so that it keeps no batch in memory
		c.pool.Put(d)
		windows.Put(window)
	}
	r, err := c.reset(d, raw)
	if err != nil {
		release()
		return nil, err
	}
	*to = source{buf: *window, from: r}
	return release, nil
}

var windows = sync.Pool{New: func() any { b := make([]byte, windowSize); return &b }}

var gzips = &codec{
	pool: sync.Pool{New: func() any { return new(gzip.Reader) }},
	reset: func(of any, raw []byte) (io.Reader, error) {
		d, _ := of.(*gzip.Reader)
		err := d.Reset(bytes.NewReader(raw))
		if raw == nil {
			err = nil
		}
		return d, err
	},
}

var lz4s = &codec{
	pool: sync.Pool{New: func() any { return lz4.NewReader(nil) }},
	reset: func(of any, raw []byte) (io.Reader, error) {
		d, _ := of.(*lz4.Reader)
		d.Reset(bytes.NewReader(raw))
		return d, nil
	},
}

// maxZstdWindow bounds how far back a zstd frame may refer, which is what its decoder has to hold. It
// is the size that decoders should support according to RFC 8878.
const maxZstdWindow = 8 << 20

var zstds = &codec{
	pool: sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	}},
	reset: func(of any, raw []byte) (io.Reader, error) {
		d, _ := of.(*zstd.Decoder)
		if raw == nil {
			return d, d.Reset(nil)
		}
		// Not a *bytes.Buffer, which the decoder would decompress as a whole.
		return d, d.Reset(boundWindow(raw))
	},
}

// boundWindow returns the frame with a smaller window if its header asks for more than
// maxZstdWindow. At high levels, compressors announce a window of up to 128 MiB, however little they
// compress. A frame that really refers back further than the smaller window fails to decompress.
func boundWindow(raw []byte) io.Reader {
	var h zstd.Header
	whole := bytes.NewReader(raw)
	if h.Decode(raw) != nil || h.Skippable || max(h.WindowSize, windowOfSegment(&h)) <= maxZstdWindow {
		return whole
	}
	const (
		magic         = 4
		singleSegment = 1 << 5
		windowOf8MiB  = 13 << 3 // 2¹⁰⁺¹³ bytes
	)
	start := bytes.Clone(raw[:magic+1])
	rest := raw[magic+1:]
	if start[magic]&singleSegment != 0 {
		start[magic] &^= singleSegment // then the window's size follows
	} else {
		rest = rest[1:]
	}
	return io.MultiReader(bytes.NewReader(append(start, windowOf8MiB)), bytes.NewReader(rest))
}

// windowOfSegment returns the window of a frame that announces its size instead of a window.
func windowOfSegment(h *zstd.Header) uint64 {
	if h.SingleSegment {
		return h.FrameContentSize
	}
	return 0
}

var snappies = &codec{
	pool: sync.Pool{New: func() any { return new(snappyReader) }},
	reset: func(of any, raw []byte) (io.Reader, error) {
		d, _ := of.(*snappyReader)
		return d, d.reset(raw)
	},
}

// maxSnappyBlock is the largest block that is decompressed. The format allows no decompression in
// parts, so a reader holds one block in memory; it is larger than the largest record of any topic.
// maxSnappyRatio is more than the format can express.
const (
	maxSnappyBlock = 32 << 20
	maxSnappyRatio = 64
	keepSnappy     = 1 << 20 // size up to which a block's memory is reused
)

// xerialHeader begins the framing of Java's snappy library: a magic number and two versions, followed
// by blocks, each after its length. Other clients write one block without any framing.
var xerialHeader = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

// snappyReader decompresses one block after the other.
type snappyReader struct {
	raw    []byte
	framed bool
	block  []byte // memory of the last block
	left   []byte // of the last block
}

func (s *snappyReader) reset(raw []byte) error {
	s.raw, s.left = raw, nil
	if s.framed = bytes.HasPrefix(raw, xerialHeader); s.framed {
		const versions = 8
		if len(raw) < len(xerialHeader)+versions {
			return errSnappy
		}
		s.raw = raw[len(xerialHeader)+versions:]
	}
	if cap(s.block) > keepSnappy {
		s.block = nil
	}
	return nil
}

var errSnappy = errors.New("snappy: corrupt input")

// Read implements io.Reader.
func (s *snappyReader) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		if len(s.raw) == 0 {
			return 0, io.EOF
		}
		if err := s.decode(s.nextBlock()); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

func (s *snappyReader) nextBlock() []byte {
	block := s.raw
	if !s.framed {
		s.raw = nil
		return block
	}
	if len(s.raw) < 4 {
		return nil
	}
	n := binary.BigEndian.Uint32(s.raw)
	if uint64(n) > uint64(len(s.raw)-4) {
		return nil
	}
	block, s.raw = s.raw[4:4+n], s.raw[4+n:]
	return block
}

func (s *snappyReader) decode(block []byte) error {
	n, err := s2.DecodedLen(block)
	switch {
	case err != nil:
		return errSnappy
	case n > maxSnappyRatio*len(block):
		return fmt.Errorf("snappy: a block of %d bytes cannot hold the %d that it claims", len(block), n)
	case n > maxSnappyBlock:
		return fmt.Errorf("snappy: a block of %d bytes is larger than %d", n, maxSnappyBlock)
	}
	if s.block, err = s2.Decode(s.block[:0], block); err != nil {
		return errSnappy
	}
	s.left = s.block
	return nil
}
