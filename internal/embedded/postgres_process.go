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

// process is a running postgres. It dies with us: on Linux the kernel signals
// it when the thread that started it ends, so that thread is kept for as long
// as the process lives; elsewhere a watchdog does it.
type process struct {
	pid    int
	log    *serverLog
	exited chan struct{} // closed when it and its children are gone
	err    error         // set before exited is closed
}

// earlyExitError says that postgres ended before it was ready.
type earlyExitError struct {
	dir  string
	tail string
	err  error
}

func (e *earlyExitError) Error() string {
	return fmt.Sprintf("starting Postgres in %s: it ended: %v; its last words: %s", e.dir, e.err, e.tail)
}

func (e *earlyExitError) Unwrap() error { return e.err }

// passing reports whether the cause goes away by itself.
func (e *earlyExitError) passing() bool {
	for _, s := range []string{"could not create any TCP/IP sockets", "pre-existing shared memory block", "lock file \"postmaster.pid\" already exists"} {
		if strings.Contains(e.tail, s) {
			return true
		}
	}
	return false
}

// runPostgres starts the server and waits until it says that it is ready.
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
	// A child that outlives the server may keep its end of the pipe open.
	cmd.WaitDelay = 10 * time.Second
	dieWithUs(cmd.SysProcAttr, onDeath)

	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see process; given back when postgres is gone
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			proc.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		stopWatching := watchUs(proc.pid, onDeath)
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
		err := fmt.Errorf("waiting for Postgres in %s to be ready: %w; its last words: %s", p.dir, ctx.Err(), proc.log.tail())
		return nil, errors.Join(err, proc.end(syscall.SIGQUIT, stopWait))
	}
}

// end asks the server to stop with sig and, when that takes longer than wait,
// more and more firmly.
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
	return fmt.Errorf("stopping Postgres (pid %d): it survived SIGKILL for %s", p.pid, wait)
}

// stopOrphan stops a postgres that still runs on data although the process that
// started it is dead, and waits until it is gone: it may be writing its last
// checkpoint. The caller holds the directory's lock.
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
		return fmt.Errorf("stopping the Postgres (pid %d) that was left running on %s: %w", pid, data, err)
	}
	// It is not our child: nothing wakes us when it ends.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for postmasterOf(data) == pid {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the Postgres (pid %d) that was left running on %s to end: %w; stop it by hand", pid, data, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// postmasterOf is the process id of the live postgres that we started on data,
// or 0. The file that names it stays behind after a crash, and its number may
// belong to a stranger by now; in a container it often does. Postgres would take
// the stranger for itself and refuse to start, so then the file is removed.
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
		_ = os.Remove(path) // Postgres says what is wrong if this did not work
	}
	return 0
}

// serverLog reads what postgres writes: it knows when the server is ready,
// keeps the last lines for error messages and hands all on as debug messages.
type serverLog struct {
	log   *slog.Logger
	ready chan struct{}

	mu    sync.Mutex
	line  []byte
	last  []string
	isSet bool
}

const (
	readyWords   = "database system is ready to accept connections"
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
	if !l.isSet && strings.Contains(line, readyWords) {
		l.isSet = true
		close(l.ready)
	}
}

func (l *serverLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, " | ")
}

// command prepares a Postgres program to run as the owner, in a process group
// of its own: the Ctrl-C that starts our orderly shutdown must not reach it
// first. PG* variables of the user stay outside.
func (b binaries) command(o owner, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.dir, program), args...) //nolint:noctx // the caller ends it, and waits
	cmd.Env = []string{"LC_ALL=C", "PATH=" + b.dir + ":/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if o.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	return cmd
}
