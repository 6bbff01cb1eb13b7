package audit

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines is a log that a test can wait for.
type lines struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{})} }

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.buf.Write(b)
}

// await waits until something was logged.
func (l *lines) await(t *testing.T, what string) {
	t.Helper()
	limit := time.After(patience)
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
			t.Fatalf("%q is not logged, but:\n%s", what, text)
		}
	}
}
