package config_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/config"
)

// watch starts Watch and returns a function that waits for one call of its fn.
func watch(t *testing.T, path string) (changed func()) {
	t.Helper()
	calls, started, ended := make(chan struct{}, 100), make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- config.Watch(ctx, path, func() { calls <- struct{}{} }, func() { close(started) })
	}()
	within := func(c <-chan struct{}, what string) {
		t.Helper()
		select {
		case <-c:
		case err := <-ended:
			t.Fatalf("Watch ended: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal(what)
		}
	}
	within(started, "Watch did not start")
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.Empty(t, calls, "Watch reported changes that did not happen")
	})
	return func() { t.Helper(); within(calls, "Watch did not report the change") }
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestWatchSeesEveryKindOfChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	write(t, path, "a")
	changed := watch(t, path)

	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("b") // in place, in a single write
	require.NoError(t, err)
	require.NoError(t, f.Close())
	changed()

	write(t, path+".new", "c") // rename over it, as editors do
	require.NoError(t, os.Rename(path+".new", path))
	changed()

	require.NoError(t, os.Remove(path)) // remove and recreate
	replace(t, path, "d")
	changed()
}

func TestWatchSeesSwappedSymlinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, v := range []string{"1", "2"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, v), 0o700))
		write(t, filepath.Join(dir, v, "config.yaml"), v)
	}
	require.NoError(t, os.Symlink("1", filepath.Join(dir, "data")))
	require.NoError(t, os.Symlink("data/config.yaml", filepath.Join(dir, "config.yaml")))
	changed := watch(t, filepath.Join(dir, "config.yaml"))

	require.NoError(t, os.Symlink("2", filepath.Join(dir, "next")))
	require.NoError(t, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "data")))
	changed()
}

func TestWatchIgnoresOtherFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, other := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "other.yaml")
	write(t, path, "a")
	write(t, other, "1")
	changed, otherChanged := watch(t, path), watch(t, other)
	// Both watch the same directory, so a call of one shows that the other has seen
	// the event too. A watch that reports too much has calls left at the end.
	for _, v := range []string{"2", "3"} {
		replace(t, other, v)
		otherChanged()
		replace(t, path, v)
		changed()
		replace(t, path, v) // same content: no change
	}
	replace(t, other, "4")
	otherChanged()
}

// replace changes a file atomically, so that Watch never sees half of it.
func replace(t *testing.T, path, content string) {
	t.Helper()
	write(t, path+".new", content)
	require.NoError(t, os.Rename(path+".new", path))
}

func TestWatchMissingDirectory(t *testing.T) {
	t.Parallel()
	err := config.Watch(t.Context(), filepath.Join(t.TempDir(), "no", "config.yaml"), func() {}, nil)
	require.ErrorContains(t, err, "watching ")
}
