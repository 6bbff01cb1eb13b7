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
	entryHead    = 8 // length, CRC-32C; little-endian
	maxEntrySize = 16 << 20
)

// dropTornTail cuts a log of committed offsets or producer ids off where it
// stops making sense. A process that is killed in the middle of a write leaves
// half an entry; kfake reads up to it but goes on appending after it, and the
// next start would not see any of that: offsets committed since would be gone.
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
	log.Warn("cutting off half an entry that a killed process left", "file", path, "bytes", info.Size()-valid)
	if err := f.Truncate(valid); err != nil {
		return fmt.Errorf("cutting %s to its last whole entry: %w", path, err)
	}
	return nil
}

// validPrefix counts the bytes of the whole, unharmed entries at the start of r.
func validPrefix(r io.Reader) (int64, error) {
	var (
		head  [entryHead]byte
		valid int64
		sum   = crc32.New(crc32.MakeTable(crc32.Castagnoli))
	)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return valid, ignoreEnd(err)
		}
		size := int64(binary.LittleEndian.Uint32(head[:4]))
		if size < 2 || size > maxEntrySize {
			return valid, nil
		}
		sum.Reset()
		n, err := io.CopyN(sum, r, size)
		if err != nil {
			return valid, ignoreEnd(err)
		}
		if sum.Sum32() != binary.LittleEndian.Uint32(head[4:]) {
			return valid, nil
		}
		valid += entryHead + n
	}
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
