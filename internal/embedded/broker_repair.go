package embedded

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
)

const (
	entryHead    = 8 // length and CRC-32C, both little-endian
	maxEntrySize = 16 << 20
)

// dropTornTail truncates a log of committed offsets or producer ids after its
// last intact entry. A process killed in the middle of a write leaves half an
// entry behind. kfake stops reading there but keeps appending after it, so the
// start after next would lose every offset committed in between.
func dropTornTail(path string, log *slog.Logger) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("reading the size of %s: %w", path, err)
	}
	valid, err := validPrefix(bufio.NewReaderSize(f, 64<<10))
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if valid == info.Size() {
		return nil
	}
	log.Warn("truncating an incomplete entry left by a killed process", "file", path, "bytes", info.Size()-valid)
	if err := f.Truncate(valid); err != nil {
		return fmt.Errorf("truncating %s after its last intact entry: %w", path, err)
	}
	return nil
}

// validPrefix returns the total size, in bytes, of the intact entries at the
// start of r.
func validPrefix(r io.Reader) (int64, error) {
	var (
		head  [entryHead]byte
		valid int64
		sum   = crc32.New(crc32.MakeTable(crc32.Castagnoli))
	)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return valid, ignoreEOF(err)
		}
		size := int64(binary.LittleEndian.Uint32(head[:4]))
		if size < 2 || size > maxEntrySize {
			return valid, nil
		}
		sum.Reset()
		n, err := io.CopyN(sum, r, size)
		if err != nil {
			return valid, ignoreEOF(err)
		}
		if sum.Sum32() != binary.LittleEndian.Uint32(head[4:]) {
			return valid, nil
		}
		valid += entryHead + n
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
