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

// errLocked says that another live process holds a directory.
var errLocked = errors.New("directory is in use")

// home is a directory that one process uses at a time. The lock belongs to the
// open file, so the kernel gives it back when the process dies, however it dies.
type home struct {
	path      string
	temporary bool
	lock      *os.File
}

// openHome locks dir, making it when it is missing. An empty dir stands for a
// new temporary directory; those that killed processes left are removed first.
func openHome(ctx context.Context, dir string, log *slog.Logger) (*home, error) {
	if dir == "" {
		sweep(ctx, os.TempDir(), log)
		return newTemporaryHome()
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolving data directory %s: %w", dir, err)
	}
	// Others may pass through, not look: Postgres may have to run as another user.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("making data directory %s: %w", path, err)
	}
	// One name for one directory: a Postgres that was left running is known by it.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, fmt.Errorf("resolving data directory %s: %w", dir, err)
	}
	lock, err := lockDir(path)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("data directory %s is in use by another process (pid %s): stop that one or choose another directory",
			path, lockHolder(path))
	}
	if err != nil {
		return nil, err
	}
	return &home{path: path, lock: lock}, nil
}

// newTemporaryHome makes and locks a new temporary directory. Between making
// and locking it another process may sweep it away as abandoned; then the next
// name is tried.
func newTemporaryHome() (*home, error) {
	var last error
	for range 10 {
		path, err := os.MkdirTemp("", tempPattern)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return nil, fmt.Errorf("making a temporary directory: %w", err)
		}
		if err := os.Chmod(path, 0o711); err != nil {
			return nil, fmt.Errorf("opening %s to the user that runs Postgres: %w", path, err)
		}
		lock, err := lockDir(path)
		if err == nil {
			return &home{path: path, temporary: true, lock: lock}, nil
		}
		last = err
	}
	return nil, fmt.Errorf("locking a temporary directory: %w", last)
}

// lockDir takes the lock of dir without waiting and writes our process id into
// it for people to read.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock of %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", dir, errLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	// Whoever removed the directory while we waited for the lock left us a file
	// without a name: it protects nothing.
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

// lockHolder is the process id that the holder of dir wrote, or "unknown".
func lockHolder(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil || len(raw) < 2 || len(raw) > 16 {
		return "unknown"
	}
	return string(raw[:len(raw)-1])
}

// close gives the lock back and removes the directory when it is temporary.
// The directory goes first: in between nobody else may take it for abandoned.
func (h *home) close() error {
	var err error
	if h.temporary {
		if err = os.RemoveAll(h.path); err != nil {
			err = fmt.Errorf("removing temporary directory %s: %w", h.path, err)
		}
	}
	return errors.Join(err, h.lock.Close())
}

// sweep removes the temporary directories in dir that nobody holds any more. A
// killed process leaves them behind; its Postgres may still be shutting down.
// What cannot be removed is logged and left: it must not keep us from starting.
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
			log.Warn("removing an abandoned temporary directory", "dir", path, "error", err)
			continue
		}
		log.Info("removed an abandoned temporary directory", "dir", path)
	}
}

// abandoned reports whether path may be one of our temporary directories: a
// directory of this user with a lock file in it. One without a lock file is
// being made at this moment, or is not ours.
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
