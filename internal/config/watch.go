package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settle  = 100 * time.Millisecond // quiet time after which a file counts as written
	longest = time.Second            // a directory that is never quiet is looked at this often
)

// Watch calls fn whenever what is in the file has changed, until ctx ends; then
// it returns nil. It watches the directory, not the file: editors write a new file
// and rename it over the old one, and in Kubernetes the file is a link in a
// directory that is exchanged as a whole. fn is called by this goroutine, never
// twice at a time, and not for a file that is gone or cannot be read.
// started, which may be nil, is called once changes will be seen.
func Watch(ctx context.Context, path string, fn func(), started func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	defer func() { _ = w.Close() }()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watching %s: %w", path, err)
	}
	last, _ := digest(path)
	if started != nil {
		started()
	}
	timer := time.NewTimer(longest)
	timer.Stop()
	var first time.Time // of the events since the last look
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			if first.IsZero() {
				first = time.Now()
			}
			timer.Reset(min(settle, max(0, longest-time.Since(first))))
		case _, ok := <-w.Errors: // an overflow: events were lost, so look
			if !ok {
				return nil
			}
			timer.Reset(settle)
		case <-timer.C:
			first = time.Time{}
			if now, ok := digest(path); ok && now != last {
				last = now
				fn()
			}
		}
	}
}

func digest(path string) ([sha256.Size]byte, bool) {
	data, err := readFile(path)
	if err != nil {
		return [sha256.Size]byte{}, false
	}
	return sha256.Sum256(data), true
}
