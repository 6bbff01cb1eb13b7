package audittest

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// Lines collects what is logged, so that a test can wait for it.
type Lines struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

// NewLines returns an empty log.
func NewLines() *Lines { return &Lines{more: make(chan struct{})} }

// Logger returns a logger that writes to l.
func (l *Lines) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Write is called by the logger.
func (l *Lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.buf.Write(b)
}

// Await waits until what was logged contains a text.
func (l *Lines) Await(t *testing.T, what string) {
	t.Helper()
	limit := time.After(Patience)
	for {
		l.mu.Lock()
		text, more := l.buf.String(), l.more
		l.mu.Unlock()
		if strings.Contains(text, what) {
			return
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("%q was not logged, but:\n%s", what, text)
		}
	}
}
