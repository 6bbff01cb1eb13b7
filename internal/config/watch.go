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
	quietPeriod = 100 * time.Millisecond // without events, before the file counts as written
	maxDelay    = time.Second            // between checks, in a directory that is never quiet
)

// Watch calls fn whenever the content of the file changes, until ctx ends; then it
// returns nil. It watches the directory, not the file: editors write a new file and
// rename it over the old one, and in Kubernetes the file is a symlink into a
// directory that is replaced as a whole. fn runs on the goroutine of Watch, so
// never concurrently, and is not called while the file is missing or unreadable.
// started, which may be nil, is called once Watch will notice changes.
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
	timer := time.NewTimer(maxDelay)
	timer.Stop()
	var first time.Time // of the first event since the last check
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
			timer.Reset(min(quietPeriod, max(0, maxDelay-time.Since(first))))
		case _, ok := <-w.Errors: // the queue overflowed and events were lost: check
			if !ok {
				return nil
			}
			timer.Reset(quietPeriod)
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
