package jobs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// errLineTooLong means that a line exceeds the limit; the reader is behind it.
var errLineTooLong = errors.New("the line is too long")

// lineReader reads lines of limited length and counts them.
type lineReader struct {
	r      *bufio.Reader
	limit  int
	number int // of the last line read, starting at 1
	buf    []byte
}

func newLineReader(r io.Reader, limit int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

var utf8BOM = []byte{0xef, 0xbb, 0xbf}

// next returns the next line that is not blank, without its line end, or io.EOF. The bytes
// are valid until the next call. Reading may continue after errLineTooLong.
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.read()
		if err != nil {
			return nil, err
		}
		for bytes.HasPrefix(line, utf8BOM) { // of this file, or of one that was appended to it
			line = line[len(utf8BOM):]
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}

// read returns the next line, blank or not.
func (l *lineReader) read() ([]byte, error) {
	l.buf = l.buf[:0]
	tooLong, some := false, false
	for {
		part, err := l.r.ReadSlice('\n')
		some = some || len(part) > 0
		if !tooLong {
			l.buf = append(l.buf, part...)
			tooLong = len(l.buf) > l.limit+2 // the line end does not count
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && !some:
			return nil, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("reading line %d: %w", l.number+1, err)
		}
		l.number++
		if tooLong || len(bytes.TrimRight(l.buf, "\r\n")) > l.limit {
			l.buf = nil // do not keep memory that one giant line needed
			return nil, errLineTooLong
		}
		return l.buf, nil
	}
}
