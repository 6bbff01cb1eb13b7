package jobs

import (
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd file may ask for; zstd itself does not go beyond
// unless it is told to with --long.
const maxWindow = 128 << 20

// headBytes is how much of a file tells what it is.
const headBytes = 16

// compression is how a file is compressed.
type compression string

const (
	plainFile compression = ""
	gzipFile  compression = "gzip"
	zstdFile  compression = "zstd"
)

// compressionOf recognises a compressed file by its first bytes, whatever its name.
func compressionOf(head []byte) compression {
	if len(head) < 4 {
		return plainFile
	}
	switch magic := binary.LittleEndian.Uint32(head); {
	case head[0] == 0x1f && head[1] == 0x8b:
		return gzipFile
	case magic == 0xfd2fb528, magic&^0xf == 0x184d2a50: // a frame, or one to skip in front of it
		return zstdFile
	}
	return plainFile
}

// unpack replaces a compressed file with its content, in a temporary file, because it is read
// twice. It checks what kind of file it is.
func (p *Plan) unpack(ctx context.Context) error {
	head, err := p.head()
	if err != nil {
		return err
	}
	packed := compressionOf(head)
	if packed != plainFile {
		if err := p.decompress(ctx, packed); err != nil {
			return err
		}
		if head, err = p.head(); err != nil {
			return err
		}
		if again := compressionOf(head); again != plainFile {
			return fmt.Errorf("%s is compressed twice, with %s and with %s; decompress it once", p.Path, packed, again)
		}
	}
	if wrong := checkHead(head); wrong != nil {
		return &InvalidError{Path: p.Path, Lines: []LineError{{Line: 1, Err: wrong}}}
	}
	return nil
}

// head returns the first bytes of the file.
func (p *Plan) head() ([]byte, error) {
	head := make([]byte, headBytes)
	n, err := p.file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s: %w", p.Path, err)
	}
	return head[:n], nil
}

// decompress replaces the file by a temporary one with its content.
func (p *Plan) decompress(ctx context.Context, packed compression) error {
	if err := p.rewind(); err != nil {
		return err
	}
	content, err := openPacked(contextReader{ctx, p.file}, packed)
	if err != nil {
		return fmt.Errorf("decompressing %s (%s): %w", p.Path, packed, err)
	}
	defer func() { _ = content.Close() }() // it was only read
	before := *p
	err = p.save(content, "the content of "+p.Path)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("decompressing %s (%s): the file is cut off; copy it again", p.Path, packed)
	}
	if p.file == before.file { // there is no new one
		return err
	}
	return errors.Join(err, before.Close())
}

// openPacked returns a reader of the content of a compressed file. Its memory is bounded.
func openPacked(r io.Reader, packed compression) (io.ReadCloser, error) {
	if packed == gzipFile {
		return gzip.NewReader(r)
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// save copies what is read to a temporary file, because it is read twice, and makes that the
// plan's file. Close removes it.
func (p *Plan) save(r io.Reader, what string) error {
	f, err := os.CreateTemp("", "batchyard-job-*")
	if err != nil {
		return fmt.Errorf("saving %s: %w", what, err)
	}
	p.file, p.temp = f, f.Name()
	n, err := io.Copy(f, io.LimitReader(r, p.options.Config.MaxBytes+1))
	if err != nil {
		return fmt.Errorf("saving %s in %s: %w", what, p.temp, err)
	}
	if n > p.options.Config.MaxBytes {
		return fmt.Errorf("%s is larger than %d bytes; split it, or raise jobs.max_bytes", what, p.options.Config.MaxBytes)
	}
	return nil
}
