package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
)

const (
	tempPattern = "batchyard-*"
	lockName    = "lock"
)

// errLocked means that another running process holds the directory.
var errLocked = errors.New("directory is in use")

// home is a directory that only one process uses at a time. The lock belongs to
// the open file, so the kernel releases it however the process dies.
type home struct {
	path      string
	temporary bool
	lock      *os.File
}

// openHome locks dir, creating it if it is missing. An empty dir means a new
// temporary directory; those left behind by killed processes are removed first.
func openHome(ctx context.Context, dir string, log *slog.Logger) (*home, error) {
	if dir == "" {
		sweep(ctx, os.TempDir(), log)
		return newTemporaryHome()
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolving data directory %s: %w", dir, err)
	}
	// Other users may enter but not list it: Postgres may run as another user.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("creating data directory %s: %w", path, err)
	}
	// stopOrphan recognises a Postgres by its path, so a directory must always be
	// called by the same name.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("resolving data directory %s: %w", dir, err)
	}
	lock, err := lockDir(path)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another process (pid %s): stop that process or choose another directory",
			path, lockHolder(path))
	}
	if err != nil {
		return nil, err
	}
	return &home{path: path, lock: lock}, nil
}

// newTemporaryHome creates and locks a temporary directory. Another process may
// remove it as abandoned before it is locked; then the next name is tried.
func newTemporaryHome() (*home, error) {
	var lastErr error
	for range 10 {
		path, err := os.MkdirTemp("", tempPattern)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return nil, fmt.Errorf("creating a temporary directory: %w", err)
		}
		if err := os.Chmod(path, 0o711); err != nil {
			return nil, fmt.Errorf("letting the user that runs Postgres into %s: %w", path, err)
		}
		lock, err := lockDir(path)
		if err == nil {
			return &home{path: path, temporary: true, lock: lock}, nil
		}
		lastErr = err
	}
	return nil, fmt.Errorf("locking a temporary directory: %w", lastErr)
}

// lockDir takes the lock of dir without waiting, and writes our process id into
// the lock file for people and error messages.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", dir, errLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	// If another process removed the directory between our open and our flock, we
	// hold a lock on a deleted file, which protects nothing.
	held, err := f.Stat()
	if err == nil {
		var named fs.FileInfo
		if named, err = os.Stat(path); err == nil && !os.SameFile(held, named) {
			err = errLocked
		}
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// lockHolder returns the process id in the lock file of dir, or "unknown".
func lockHolder(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil || len(raw) < 2 || len(raw) > 16 {
		return "unknown"
	}
	return string(raw[:len(raw)-1])
}

// close releases the lock and removes the directory if it is temporary. The
// directory is removed first, so that no other process can see it unlocked and
// treat it as abandoned.
func (h *home) close() error {
	var err error
	if h.temporary {
		if err = os.RemoveAll(h.path); err != nil {
			err = fmt.Errorf("removing temporary directory %s: %w", h.path, err)
		}
	}
	return errors.Join(err, h.lock.Close())
}

// sweep removes temporary directories in dir that were left behind by killed
// processes, whose Postgres may still be shutting down. A directory that cannot
// be removed is logged and left: it must not keep us from starting.
func sweep(ctx context.Context, dir string, log *slog.Logger) {
	found, err := filepath.Glob(filepath.Join(dir, tempPattern))
	if err != nil {
		return
	}
	for _, path := range found {
		if ctx.Err() != nil {
			return
		}
		if !abandoned(path) {
			continue
		}
		lock, err := lockDir(path)
		if err != nil {
			continue // in use
		}
		err = stopOrphan(ctx, filepath.Join(path, postgresDir, dataDir), syscall.SIGQUIT)
		if err == nil {
			err = os.RemoveAll(path)
		}
		_ = lock.Close()
		if err != nil {
			log.Warn("cannot remove an abandoned temporary directory", "dir", path, "error", err)
			continue
		}
		log.Info("removed an abandoned temporary directory", "dir", path)
	}
}

// abandoned reports whether path could be an abandoned directory of ours: it
// belongs to this user and contains a lock file. Without a lock file it is either
// still being created or not ours.
func abandoned(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return false
	}
	info, err = os.Lstat(filepath.Join(path, lockName))
	return err == nil && info.Mode().IsRegular()
}
