package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/batchyard/batchyard/test/harness"
)

// process is one process of the program, started again when it ends, as a
// supervisor does.
type process struct {
	name, stage, lane string
	port              int // of the API, or of health and metrics
	bin, config, dir  string
	log               func(format string, args ...any)

	op sync.Mutex // one signal at a time

	mu      sync.Mutex
	cmd     *exec.Cmd
	done    chan struct{} // closed when cmd has ended
	life    *life
	wanted  bool // it is to run
	fell    string
	refused int  // starts that ended before they were ready
	vain    bool // the last one did
	pause   time.Duration
	starts  int
}

// life is one run of the program.
type life struct {
	mu    sync.Mutex
	file  *os.File
	tail  []byte
	ready bool
	panic bool
}

const tailBytes = 8 << 10

func (l *life) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, p...)
	if bytes.Contains(l.tail, []byte("msg=ready")) {
		l.ready = true
	}
	if bytes.Contains(l.tail, []byte("panic: ")) || bytes.Contains(l.tail, []byte("fatal error: ")) || bytes.Contains(l.tail, []byte("\ngoroutine ")) {
		l.panic = true
	}
	if len(l.tail) > 2*tailBytes {
		l.tail = bytes.Clone(l.tail[len(l.tail)-tailBytes:])
	}
	return l.file.Write(p)
}

func (l *life) state() (ready, panicked bool, tail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready, l.panic, string(l.tail[max(0, len(l.tail)-2000):])
}

// start runs the program. It is called with the process to be down.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startLocked()
}

func (p *process) startLocked() error {
	f, err := os.OpenFile(filepath.Join(p.dir, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", p.name, err)
	}
	l := &life{file: f}
	cmd := exec.Command(p.bin, "serve", p.stage, "--config", p.config) //nolint:noctx // it is ended by us
	cmd.Env = append(cleanEnv(), harness.SecretEnv+"="+harness.Secret,
		"BATCHYARD_API_LISTEN="+local(p.port), "BATCHYARD_OPS_LISTEN="+local(p.port))
	cmd.Stdout, cmd.Stderr = l, l
	cmd.SysProcAttr = harness.DieWithUs()
	cmd.WaitDelay = 5 * time.Second
	_, _ = fmt.Fprintf(f, "--- started %s\n", time.Now().UTC().Format(time.RFC3339Nano)) // a mark for who reads it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.life, p.wanted = cmd, done, l, true
	p.starts++
	go p.watch(cmd, l, done)
	return nil
}

// watch waits for the end of a process, and starts it again unless it was to end.
func (p *process) watch(cmd *exec.Cmd, l *life, done chan struct{}) {
	err := cmd.Wait()
	_ = l.file.Close() // nobody writes any more
	ready, panicked, tail := l.state()
	p.mu.Lock()
	close(done)
	mine := p.wanted && p.cmd == cmd
	if panicked && p.fell == "" {
		p.fell = fmt.Sprintf("it panicked:\n%s", tail)
	}
	if mine && ready && p.fell == "" {
		p.fell = fmt.Sprintf("it ended by itself (%v) although it had been ready:\n%s", err, tail)
	}
	first := !p.vain // one line for many vain starts
	p.vain = mine && !ready
	pause := 500 * time.Millisecond
	if p.vain {
		p.refused++
		p.pause = min(2*p.pause+pause, 3*time.Second)
		pause = p.pause
	} else {
		p.pause = 0
	}
	p.mu.Unlock()
	if !mine {
		return
	}
	if ready || panicked || first {
		p.log("%s ended by itself: %v (ready before: %v)", p.name, err, ready)
	}
	<-time.After(pause)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted && p.cmd == cmd {
		if err := p.startLocked(); err != nil {
			p.log("%v", err)
		}
	}
}

// end sends a signal and waits for the end; hung says that it did not come within
// the limit and the process was killed. The exit code is -1 after a signal.
func (p *process) end(sig syscall.Signal, limit time.Duration) (code int, hung bool) {
	p.mu.Lock()
	p.wanted = false
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return 0, false
	}
	_ = cmd.Process.Signal(sig) // it may have ended
	select {
	case <-done:
	case <-time.After(limit):
		p.log("%s does not end: asking it for its goroutines", p.name)
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
		}
		_ = cmd.Process.Kill()
		<-done
		return -1, true
	}
	return cmd.ProcessState.ExitCode(), false
}

func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(sig) // it may have ended
	}
}

func (p *process) url() string { return "http://" + local(p.port) }

// awaitReady waits until /readyz answers 200.
func (p *process) awaitReady(ctx context.Context) error {
	return poll(ctx, 100*time.Millisecond, func() error {
		_, err := get(ctx, p.url()+"/readyz")
		if err != nil {
			return fmt.Errorf("%s is not ready: %w", p.name, err)
		}
		return nil
	})
}

var (
	goroutines  = regexp.MustCompile(`(?m)^go_goroutines (\S+)$`)
	descriptors = regexp.MustCompile(`(?m)^process_open_fds (\S+)$`)
)

// figures are the goroutines and open files of the process now.
func (p *process) figures(ctx context.Context) (out [2]int, err error) {
	b, err := get(ctx, p.url()+"/metrics")
	if err != nil {
		return out, fmt.Errorf("reading the metrics of %s: %w", p.name, err)
	}
	for i, re := range []*regexp.Regexp{goroutines, descriptors} {
		m := re.FindSubmatch(b)
		if m == nil {
			return out, fmt.Errorf("reading the metrics of %s: %s is not there", p.name, re)
		}
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return out, fmt.Errorf("reading the metrics of %s: %w", p.name, err)
		}
		out[i] = int(v)
	}
	return out, nil
}

var plain = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	resp, err := plain.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it is read to its end
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d", url, resp.StatusCode)
	}
	return b.Bytes(), nil
}

// poll tries again until it works or ctx ends, whose error then is the last one.
func poll(ctx context.Context, every time.Duration, try func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// cleanEnv is our environment without what would change a configuration.
func cleanEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BATCHYARD_") && !strings.HasPrefix(e, "PG") && !strings.HasPrefix(e, "CHAOS_") {
			out = append(out, e)
		}
	}
	return append(out, "NO_COLOR=1")
}
