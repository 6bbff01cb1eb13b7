package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running postgres. It ends when this process does. On Linux the
// kernel signals it when the thread that started it ends, so that thread is kept
// as long as postgres runs. Elsewhere a watchdog does the same.
type process struct {
	pid    int
	log    *serverLog
	exited chan struct{} // closed when postgres and its children are gone
	err    error         // set before exited is closed
}

// earlyExitError means that postgres exited before it was ready.
type earlyExitError struct {
	dir  string
	tail string
	err  error
}

func (e *earlyExitError) Error() string {
	return fmt.Sprintf("starting Postgres in %s: it exited: %v; its last output: %s", e.dir, e.err, e.tail)
}

func (e *earlyExitError) Unwrap() error { return e.err }

// temporary reports whether the cause goes away on its own. Postgres has the same
// exit code for every startup failure, so only its messages tell them apart.
func (e *earlyExitError) temporary() bool {
	for _, s := range []string{"could not create any TCP/IP sockets", "pre-existing shared memory block", "lock file \"postmaster.pid\" already exists"} {
		if strings.Contains(e.tail, s) {
			return true
		}
	}
	return false
}

// runPostgres starts the server and waits until it reports that it is ready.
func runPostgres(ctx context.Context, p *Postgres) (*process, error) {
	onDeath := syscall.SIGINT
	if p.temporary {
		onDeath = syscall.SIGQUIT
	}
	proc := &process{log: newServerLog(p.log), exited: make(chan struct{})}
	cmd := p.bin.command(p.owner, "postgres", p.settings()...)
	cmd.Dir = p.dir
	cmd.Stderr = proc.log
	cmd.Stdout = proc.log
	// A child that outlives the server may hold its end of the pipe open.
	cmd.WaitDelay = 10 * time.Second
	signalOnParentDeath(cmd.SysProcAttr, onDeath)

	started := make(chan error)
	go func() {
		runtime.LockOSThread() // until postgres is gone: see process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			proc.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		stopWatching := watchParent(proc.pid, onDeath)
		proc.err = cmd.Wait()
		stopWatching()
		close(proc.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s as user %s: %w", cmd.Path, p.owner.name, err)
	}
	select {
	case <-proc.log.ready:
		return proc, nil
	case <-proc.exited:
		return nil, &earlyExitError{dir: p.dir, tail: proc.log.tail(), err: proc.err}
	case <-ctx.Done():
		err := fmt.Errorf("waiting for Postgres in %s to be ready: %w; its last output: %s", p.dir, ctx.Err(), proc.log.tail())
		return nil, errors.Join(err, proc.end(syscall.SIGQUIT, stopWait))
	}
}

// end stops the server with sig, then with SIGQUIT, then with SIGKILL, waiting up
// to wait after each.
func (p *process) end(sig syscall.Signal, wait time.Duration) error {
	for _, s := range []syscall.Signal{sig, syscall.SIGQUIT, syscall.SIGKILL} {
		if err := syscall.Kill(p.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping Postgres (pid %d) with %s: %w", p.pid, s, err)
		}
		select {
		case <-p.exited:
			return nil
		case <-time.After(wait):
		}
	}
	return fmt.Errorf("stopping Postgres (pid %d): still running %s after SIGKILL", p.pid, wait)
}

// stopOrphan stops a postgres that is still running on data although the process
// that started it has died, and waits until it is gone: it may still be writing
// its final checkpoint. The caller holds the directory's lock.
func stopOrphan(ctx context.Context, data string, sig syscall.Signal) error {
	pid := postmasterOf(data)
	if pid == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*stopWait)
	defer cancel()
	if err := syscall.Kill(pid, sig); err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return nil
		}
		return fmt.Errorf("stopping the Postgres (pid %d) left running on %s: %w", pid, data, err)
	}
	// It isn't our child, so we can't wait for it and poll instead.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for postmasterOf(data) == pid {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the Postgres (pid %d) left running on %s to exit: %w; stop it manually", pid, data, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// postmasterOf returns the process id of the running postgres that we started on
// data, or 0. postmaster.pid survives a crash, and its number may since have been
// reused by an unrelated process, as is common in containers. Postgres would take
// that process for itself and refuse to start, so the file is removed.
func postmasterOf(data string) int {
	path := filepath.Join(data, "postmaster.pid")
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return 0
	}
	switch command := commandOf(pid); {
	case strings.Contains(command, "-D "+data+" "):
		return pid
	case command != "" && !strings.Contains(command, "postgres"):
		_ = os.Remove(path) // if this fails, Postgres reports the problem
	}
	return 0
}

// serverLog reads the output of postgres. It notices when the server is ready,
// keeps the last lines for error messages, and logs every line at debug level.
type serverLog struct {
	log   *slog.Logger
	ready chan struct{}

	mu      sync.Mutex
	line    []byte
	last    []string
	isReady bool
}

const (
	readyLine    = "database system is ready to accept connections"
	maxLogLine   = 4 << 10
	maxLastLines = 10
)

func newServerLog(log *slog.Logger) *serverLog {
	return &serverLog{log: log, ready: make(chan struct{})}
}

func (l *serverLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		if c != '\n' {
			if len(l.line) < maxLogLine {
				l.line = append(l.line, c)
			}
			continue
		}
		l.end(string(l.line))
		l.line = l.line[:0]
	}
	return len(p), nil
}

func (l *serverLog) end(line string) {
	l.log.Debug(line, "part", "postgres")
	if len(l.last) == maxLastLines {
		l.last = append(l.last[:0], l.last[1:]...)
	}
	l.last = append(l.last, line)
	if !l.isReady && strings.Contains(line, readyLine) {
		l.isReady = true
		close(l.ready)
	}
}

func (l *serverLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, " | ")
}

// command prepares a Postgres program to run as the owner, in its own process
// group: the Ctrl-C that starts our clean shutdown must not reach it first. The
// user's PG* variables are not passed on.
func (b binaries) command(o owner, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.dir, program), args...) //nolint:noctx // the caller stops it and waits for it
	cmd.Env = []string{"LC_ALL=C", "PATH=" + b.dir + ":/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if o.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	return cmd
}
