package sealer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/batchyard/batchyard/audit"
)

// checkpointFileBytes is the size from which a file is renamed and a new one begins.
const checkpointFileBytes = 64 << 20

// append appends a line to the file of checkpoints.
func (s *Sealer) append(line []byte, number int64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return appendLine(s.dir, line, number)
}

// copy writes a line to a file of its own in each of the directories for copies, below one for the day. It never
// replaces a file, so that the directory may be one with a retention lock.
func (s *Sealer) copy(name string, at time.Time, line []byte) {
	for _, c := range s.cfg.Copies {
		dir := filepath.Join(strings.TrimPrefix(c, "file://"), at.UTC().Format(time.DateOnly))
		if err := writeNew(dir, name, append(slices.Clip(line), '\n')); err != nil {
			s.Metrics.Checkpoints.WithLabelValues("copy_failed").Inc()
			s.Logger.Warn("a checkpoint could not be copied; see audit.checkpoint_copies", "dir", c, "name", name, "error", err)
		}
	}
}

// writeNew writes a new file, durably. If the process dies here, the file may be incomplete, which is reported
// when it is read.
func writeNew(dir, name string, content []byte) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// appendLine appends a checkpoint to the file in dir, durably. number is the checkpoint's.
func appendLine(dir string, line []byte, number int64) error {
	path := filepath.Join(dir, audit.CheckpointFile)
	if info, err := os.Stat(path); err == nil && info.Size() > checkpointFileBytes {
		if err := os.Rename(path, filepath.Join(dir, fmt.Sprintf("checkpoints-before-%012d.jsonl", number))); err != nil {
			return fmt.Errorf("renaming a full file of checkpoints: %w", err)
		}
	}
	if _, _, err := lastLines(path); err != nil { // an earlier attempt may have left half a line
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(slices.Clip(line), '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d, err := os.Open(dir) // makes the name of the file durable, too
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lastLines returns the last lines of a file, without the newline of the last one; the first of
// them may be incomplete. It returns nothing if there is no file. What follows the last newline
// was being written when the process died: it is cut off, and torn is its size in bytes.
func lastLines(path string) (lines []byte, torn int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	from := max(0, size-2*audit.MaxCheckpoint)
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return nil, 0, err
	}
	whole := tail[:bytes.LastIndexByte(tail, '\n')+1]
	if torn = len(tail) - len(whole); torn > 0 {
		if len(whole) == 0 && from > 0 {
			return nil, 0, fmt.Errorf("%s ends in a line of more than %d bytes: it is not a file of checkpoints", path, audit.MaxCheckpoint)
		}
		if err := errors.Join(f.Truncate(from+int64(len(whole))), f.Sync()); err != nil {
			return nil, 0, err
		}
	}
	return bytes.TrimRight(whole, "\r\n"), torn, nil
}
