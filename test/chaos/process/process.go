// Package process runs processes of the program, as a supervisor does, with wrong clocks.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
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

	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/test/chaos/services"
	"github.com/batchyard/batchyard/test/harness"
)

// Process is a process of the program. Like a supervisor, it restarts the program
// when it exits.
type Process struct {
	Name, Stage, Lane string
	Port              int // of the API, or of health and metrics
	Bin, Config, Dir  string
	Seed              uint64 // of how wrong its clock is
	Log               func(format string, args ...any)

	Op sync.Mutex // one signal at a time

	mu      sync.Mutex
	cmd     *exec.Cmd
	done    chan struct{} // closed when cmd has ended
	life    *life
	wanted  bool // should be running
	crash   string
	refused int // starts that exited before they were ready

	failedStart bool // the last start was one of them
	pause       time.Duration
	starts      int
}

// life is one execution of the program.
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

// Start runs the program, which must not be running.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startLocked()
}

func (p *Process) startLocked() error {
	f, err := os.OpenFile(filepath.Join(p.Dir, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", p.Name, err)
	}
	l := &life{file: f}
	cmd := exec.Command(p.Bin, "serve", p.Stage, "--config", p.Config) //nolint:noctx // end stops it
	cmd.Env = append(CleanEnv(), harness.SecretEnv+"="+harness.Secret,
		"BATCHYARD_API_LISTEN="+services.Local(p.Port), "BATCHYARD_OPS_LISTEN="+services.Local(p.Port), clock.Variable+"="+p.skew())
	cmd.Stdout, cmd.Stderr = l, l
	cmd.SysProcAttr = harness.EndWithParent()
	cmd.WaitDelay = 5 * time.Second
	_, _ = fmt.Fprintf(f, "--- started %s\n", time.Now().UTC().Format(time.RFC3339Nano)) // best effort
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.life, p.wanted = cmd, done, l, true
	p.starts++
	go p.watch(cmd, l, done)
	return nil
}

// skew returns how wrong the clock of the machine is that the process believes to run on: up to two hours, and
// after a while by something else. Each start has its own.
func (p *Process) skew() string {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, p.Name, p.starts)
	r := rand.New(rand.NewPCG(p.Seed, h.Sum64())) //nolint:gosec // must be reproducible
	most := int64(2 * time.Hour / time.Millisecond)
	off := func() time.Duration { return time.Duration(r.Int64N(2*most)-most) * time.Millisecond }
	return fmt.Sprintf("%s,%s@%s", off(), off(), time.Duration(1+r.IntN(30))*time.Second)
}

// watch waits for a process to exit, and restarts it unless it was meant to stop.
func (p *Process) watch(cmd *exec.Cmd, l *life, done chan struct{}) {
	err := cmd.Wait()
	_ = l.file.Close() // no more writes
	ready, panicked, tail := l.state()
	p.mu.Lock()
	close(done)
	unexpected := p.wanted && p.cmd == cmd
	if panicked && p.crash == "" {
		p.crash = fmt.Sprintf("panicked:\n%s", tail)
	}
	if unexpected && ready && p.crash == "" {
		p.crash = fmt.Sprintf("exited unexpectedly (%v) after it was ready:\n%s", err, tail)
	}
	first := !p.failedStart // log only the first of several failed starts
	p.failedStart = unexpected && !ready
	pause := 500 * time.Millisecond
	if p.failedStart {
		p.refused++
		p.pause = min(2*p.pause+pause, 3*time.Second)
		pause = p.pause
	} else {
		p.pause = 0
	}
	p.mu.Unlock()
	if !unexpected {
		return
	}
	if ready || panicked || first {
		p.Log("%s exited unexpectedly: %v (was ready: %v)", p.Name, err, ready)
	}
	<-time.After(pause)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wanted && p.cmd == cmd {
		if err := p.startLocked(); err != nil {
			p.Log("%v", err)
		}
	}
}

// End sends a signal and waits for the process to exit. hung means that it didn't
// exit within the limit and was killed. The exit code is -1 after a signal.
func (p *Process) End(sig syscall.Signal, limit time.Duration) (code int, hung bool) {
	p.mu.Lock()
	p.wanted = false
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return 0, false
	}
	_ = cmd.Process.Signal(sig) // fails if it has already exited
	select {
	case <-done:
	case <-time.After(limit):
		p.Log("%s does not exit: dumping its goroutines", p.Name)
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

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(sig) // fails if it has already exited
	}
}

// URL returns the address of its API, or of health and metrics.
func (p *Process) URL() string { return "http://" + services.Local(p.Port) }

// AwaitReady waits until /readyz answers 200.
func (p *Process) AwaitReady(ctx context.Context) error {
	return Poll(ctx, 100*time.Millisecond, func() error {
		_, err := get(ctx, p.URL()+"/readyz")
		if err != nil {
			return fmt.Errorf("%s is not ready: %w", p.Name, err)
		}
		return nil
	})
}

var (
	goroutines  = regexp.MustCompile(`(?m)^go_goroutines (\S+)$`)
	descriptors = regexp.MustCompile(`(?m)^process_open_fds (\S+)$`)
)

// Figures returns the numbers of goroutines and open files of the process.
func (p *Process) Figures(ctx context.Context) (out [2]int, err error) {
	b, err := get(ctx, p.URL()+"/metrics")
	if err != nil {
		return out, fmt.Errorf("reading the metrics of %s: %w", p.Name, err)
	}
	for i, re := range []*regexp.Regexp{goroutines, descriptors} {
		m := re.FindSubmatch(b)
		if m == nil {
			return out, fmt.Errorf("reading the metrics of %s: %s is missing", p.Name, re)
		}
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return out, fmt.Errorf("reading the metrics of %s: %w", p.Name, err)
		}
		out[i] = int(v)
	}
	return out, nil
}

var plain = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("creating the request: %w", err)
	}
	resp, err := plain.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read to the end
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered with status %d", url, resp.StatusCode)
	}
	return b.Bytes(), nil
}

// Poll retries until try succeeds or ctx ends. Then it returns the last error joined
// with that of ctx.
func Poll(ctx context.Context, every time.Duration, try func() error) error {
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

// CleanEnv returns our environment without variables that affect the configuration.
func CleanEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BATCHYARD_") && !strings.HasPrefix(e, "PG") && !strings.HasPrefix(e, "CHAOS_") {
			out = append(out, e)
		}
	}
	return append(out, "NO_COLOR=1")
}

// NoteHang records that the process did not exit after SIGTERM.
func (p *Process) NoteHang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.crash == "" {
		p.crash = "did not exit within 30 s of SIGTERM"
	}
}

// Crash returns how the process crashed after it was ready, or "".
func (p *Process) Crash() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crash
}

// Starts returns how often it was started, and how often it exited before it was ready.
func (p *Process) Starts() (all, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts, p.refused
}
