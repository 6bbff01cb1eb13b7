package ledger

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// sorter sorts any number of short byte strings in bounded memory: what does not
// fit is written to a file as sorted runs, which are merged when they are read.
type sorter struct {
	dir   string
	limit int // bytes of memory for what is not written yet

	arena []byte
	spans []extent
	file  *os.File
	at    int64 // end of the file
	runs  []extent64
	count int64
}

type extent struct{ from, to uint32 }
type extent64 struct{ from, to int64 }

// Bounds of a sorter's memory.
const (
	defaultMemory = 24 << 20
	spanCost      = 8 // bytes of memory for an entry, beside itself
	minReadAhead  = 4 << 10
	maxReadAhead  = 256 << 10
	maxEntry      = 4 << 10 // bytes of one
)

func newSorter(dir string, limit int) *sorter { return &sorter{dir: dir, limit: limit} }

// add copies an entry.
func (s *sorter) add(b []byte) error {
	if len(b) > maxEntry {
		return fmt.Errorf("sorting: an entry of %d bytes is longer than %d", len(b), maxEntry)
	}
	if len(s.arena)+len(b)+spanCost*(len(s.spans)+1) > s.limit && len(s.spans) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if s.arena == nil {
		// At once as large as it gets: growing would need twice of it.
		s.arena, s.spans = make([]byte, 0, s.limit), make([]extent, 0, s.limit/64)
	}
	from := uint32(len(s.arena))
	s.arena = append(s.arena, b...)
	s.spans = append(s.spans, extent{from, uint32(len(s.arena))})
	s.count++
	return nil
}

func (s *sorter) sortArena() {
	slices.SortFunc(s.spans, func(a, b extent) int { return bytes.Compare(s.arena[a.from:a.to], s.arena[b.from:b.to]) })
}

// spill writes what is in memory as one run.
func (s *sorter) spill() error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "batchyard-ledger-*")
		if err != nil {
			return fmt.Errorf("making a temporary file: %w; name a directory with room by --dir", err)
		}
		// Without a name, it is gone with the process. Where that does not work, close removes it.
		_ = os.Remove(f.Name())
		s.file = f
	}
	s.sortArena()
	w := bufio.NewWriterSize(io.NewOffsetWriter(s.file, s.at), 256<<10)
	n := s.at
	var head [binary.MaxVarintLen64]byte
	for _, e := range s.spans {
		k := binary.PutUvarint(head[:], uint64(e.to-e.from))
		n += int64(k) + int64(e.to-e.from)
		if _, err := w.Write(head[:k]); err != nil {
			break // Flush tells
		}
		if _, err := w.Write(s.arena[e.from:e.to]); err != nil {
			break
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing a temporary file of %d MB: %w; name a directory with room by --dir", n>>20, err)
	}
	s.runs = append(s.runs, extent64{s.at, n})
	s.at = n
	s.arena, s.spans = s.arena[:0], s.spans[:0]
	return nil
}

// each calls fn with every entry in order. The bytes are fn's until it returns.
// It may be called once.
func (s *sorter) each(fn func([]byte) error) error {
	if len(s.runs) == 0 {
		s.sortArena()
		for _, e := range s.spans {
			if err := fn(s.arena[e.from:e.to]); err != nil {
				return err
			}
		}
		return nil
	}
	if len(s.spans) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.arena, s.spans = nil, nil
	ahead := min(max(s.limit/len(s.runs), minReadAhead), maxReadAhead)
	var h merge
	for _, run := range s.runs {
		r := &runReader{r: bufio.NewReaderSize(io.NewSectionReader(s.file, run.from, run.to-run.from), ahead)}
		switch ok, err := r.next(); {
		case err != nil:
			return err
		case ok:
			h = append(h, r)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		if err := fn(h[0].entry); err != nil {
			return err
		}
		switch ok, err := h[0].next(); {
		case err != nil:
			return err
		case ok:
			heap.Fix(&h, 0)
		default:
			heap.Pop(&h)
		}
	}
	return nil
}

// close frees what the sorter holds.
func (s *sorter) close() {
	s.arena, s.spans = nil, nil
	if s.file != nil {
		_ = s.file.Close()
		_ = os.Remove(s.file.Name()) // where an open file could not be removed
	}
}

// runReader reads one run.
type runReader struct {
	r     *bufio.Reader
	entry []byte
}

func (r *runReader) next() (bool, error) {
	n, err := binary.ReadUvarint(r.r)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err == nil && n > maxEntry {
		err = errors.New("something else changed it")
	}
	if err == nil {
		r.entry = slices.Grow(r.entry[:0], int(n))[:n]
		_, err = io.ReadFull(r.r, r.entry)
	}
	if err != nil {
		return false, fmt.Errorf("reading a temporary file: %w", err)
	}
	return true, nil
}

// merge is a heap of runs by their next entry.
type merge []*runReader

func (m merge) Len() int           { return len(m) }
func (m merge) Less(i, j int) bool { return bytes.Compare(m[i].entry, m[j].entry) < 0 }
func (m merge) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }

// Push is for the heap's interface; nothing is added while merging.
func (m *merge) Push(x any) { *m = append(*m, x.(*runReader)) }

// Pop takes the last one.
func (m *merge) Pop() any {
	last := (*m)[len(*m)-1]
	*m = (*m)[:len(*m)-1]
	return last
}
