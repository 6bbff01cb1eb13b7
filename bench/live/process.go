package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startWithin = time.Minute
	endWithin   = 35 * time.Second // longer than the process's own drain timeout
	maxTail     = 8 << 10          // bytes of its log to show in an error
)

// process is a batchyard that we started. On Linux the kernel ends it when the
// thread that started it ends, so that thread is kept as long as it runs.
type process struct {
	url  string // of its API
	cmd  *exec.Cmd
	log  *logTail
	done chan struct{} // closed when it has exited
	err  error         // set before done is closed
	once sync.Once
}

// serve runs all stages as a process and waits until they are ready.
func (p *place) serve(ctx context.Context, policy Policy) (*process, error) {
	c := &process{log: &logTail{ready: make(chan string, 1)}, done: make(chan struct{})}
	c.cmd = exec.Command(p.s.o.Program, "serve", "--config", p.s.in.ConfigPath)
	c.cmd.Env = p.environment(policy)
	c.cmd.Stderr = c.log
	c.cmd.SysProcAttr = endWithParent()
	c.cmd.WaitDelay = 5 * time.Second
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see process
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.s.o.Program, err)
	}
	limit := time.NewTimer(startWithin)
	defer limit.Stop()
	var err error
	select {
	case listen := <-c.log.ready:
		c.url = "http://" + listen
		return c, nil
	case <-c.done:
		return nil, c.died()
	case <-ctx.Done():
		err = ctx.Err()
	case <-limit.C:
		err = fmt.Errorf("batchyard serve is not ready after %s; its last output:\n%s", startWithin, c.log.last())
	}
	return nil, errors.Join(err, c.end())
}

// died returns the error for a process that exited unexpectedly.
func (c *process) died() error {
	return fmt.Errorf("batchyard serve exited unexpectedly (%s); its last output:\n%s", c.cmd.ProcessState, c.log.last())
}

// end lets the process drain and stop, and kills it if that takes too long. It can
// be called again, but only the first call returns an error.
func (c *process) end() (err error) {
	c.once.Do(func() {
		select {
		case <-c.done:
			err = c.died()
			return
		default:
		}
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails if it has just exited: no matter
		limit := time.NewTimer(endWithin)
		defer limit.Stop()
		select {
		case <-c.done:
			if c.err != nil {
				err = fmt.Errorf("batchyard serve failed while stopping: %w; its last output:\n%s", c.err, c.log.last())
			}
		case <-limit.C:
			_ = c.cmd.Process.Kill() // fails if it has exited by now
			<-c.done
			err = fmt.Errorf("batchyard serve did not stop within %s and was killed; its last output:\n%s", endWithin, c.log.last())
		}
	})
	return err
}

var readyLine = regexp.MustCompile(`msg=ready .*listen=(\S+)\s`)

// logTail keeps the last part of a process's log, and reports its listen address.
type logTail struct {
	ready chan string // receives the address, once

	mu      sync.Mutex
	b       []byte
	isReady bool
}

func (w *logTail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	if !w.isReady && bytes.Contains(w.b, []byte("msg=ready")) {
		if m := readyLine.FindSubmatch(w.b); m != nil {
			w.isReady = true
			w.ready <- string(m[1]) // there is room for one
		}
	}
	if len(w.b) > 2*maxTail {
		w.b = append(w.b[:0], w.b[len(w.b)-maxTail:]...)
	}
	return len(p), nil
}

func (w *logTail) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(string(w.b[max(0, len(w.b)-maxTail):]))
}
