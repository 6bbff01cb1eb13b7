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
	endWithin   = 35 * time.Second // more than the process gives itself
	maxWords    = 8 << 10          // bytes of its log that an error tells
)

// process is a batchyard of ours. On Linux the kernel ends it when the thread
// that started it ends, so that thread is kept for as long as it runs.
type process struct {
	url  string // of its API
	cmd  *exec.Cmd
	log  *words
	done chan struct{} // closed when it has ended
	err  error         // set before
	once sync.Once
}

// serve runs all stages as a process and waits until they are ready.
func (p *place) serve(ctx context.Context, policy Policy) (*process, error) {
	c := &process{log: &words{ready: make(chan string, 1)}, done: make(chan struct{})}
	c.cmd = exec.Command(p.s.o.Program, "serve", "--config", p.s.in.ConfigPath)
	c.cmd.Env = p.environment(policy)
	c.cmd.Stderr = c.log
	c.cmd.SysProcAttr = dieWithUs()
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
		err = fmt.Errorf("batchyard serve is not ready after %s; its last words:\n%s", startWithin, c.log.last())
	}
	return nil, errors.Join(err, c.end())
}

// died tells how it ended that should have gone on.
func (c *process) died() error {
	return fmt.Errorf("batchyard serve ended by itself (%s); its last words:\n%s", c.cmd.ProcessState, c.log.last())
}

// end has it drain and stop, the hard way when that takes long. It may be called
// again; only the first call says what was wrong.
func (c *process) end() (err error) {
	c.once.Do(func() {
		select {
		case <-c.done:
			err = c.died()
			return
		default:
		}
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails when it has just ended, and then there is nothing to do
		limit := time.NewTimer(endWithin)
		defer limit.Stop()
		select {
		case <-c.done:
			if c.err != nil {
				err = fmt.Errorf("batchyard serve ended badly: %w; its last words:\n%s", c.err, c.log.last())
			}
		case <-limit.C:
			_ = c.cmd.Process.Kill() // fails when it has ended at last
			<-c.done
			err = fmt.Errorf("batchyard serve did not end within %s and was killed; its last words:\n%s", endWithin, c.log.last())
		}
	})
	return err
}

var readyLine = regexp.MustCompile(`msg=ready .*listen=(\S+)\s`)

// words is the latest of what a process says, and where it listens.
type words struct {
	ready chan string

	mu   sync.Mutex
	b    []byte
	told bool
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	if !w.told && bytes.Contains(w.b, []byte("msg=ready")) {
		if m := readyLine.FindSubmatch(w.b); m != nil {
			w.told = true
			w.ready <- string(m[1]) // there is room for one
		}
	}
	if len(w.b) > 2*maxWords {
		w.b = append(w.b[:0], w.b[len(w.b)-maxWords:]...)
	}
	return len(p), nil
}

func (w *words) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.TrimSpace(string(w.b[max(0, len(w.b)-maxWords):]))
}
