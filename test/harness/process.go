package harness

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// maxLog bounds what is kept of a process' output, in bytes; the latest is kept.
const maxLog = 1 << 20

// Process is the program, running.
type Process struct {
	Args []string

	in     *Installation
	cmd    *exec.Cmd
	out    *logBuffer
	err    *logBuffer
	done   chan struct{} // closed when it has ended
	listen string        // address of API or ops, once ready
}

// logBuffer keeps the latest output and tells when there is more.
type logBuffer struct {
	mu   sync.Mutex
	b    []byte
	more chan struct{}
}

func newLogBuffer() *logBuffer { return &logBuffer{more: make(chan struct{})} }

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if len(l.b) > 2*maxLog {
		l.b = append([]byte(nil), l.b[len(l.b)-maxLog:]...)
	}
	close(l.more)
	l.more = make(chan struct{})
	return len(p), nil
}

func (l *logBuffer) read() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b), l.more
}

var readyLine = regexp.MustCompile(`msg=ready .*listen=(\S*)`)

// Process runs the program with the installation's configuration and waits until
// it is ready: `in.Process(t, "serve", "router")`.
func (in *Installation) Process(t testing.TB, args ...string) *Process {
	t.Helper()
	return in.ProcessEnv(t, nil, args...)
}

// ProcessEnv is Process with more variables, as NAME=value.
func (in *Installation) ProcessEnv(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	p := in.Begin(t, env, args...)
	p.AwaitReady(t)
	return p
}

// Begin runs the program and does not wait.
func (in *Installation) Begin(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	program := in.Program
	if program == "" {
		program = Binary(t)
	}
	p := start(t, program, in.Dir, env, append(append([]string(nil), args...), "--config", in.ConfigPath)...)
	p.in, p.Args = in, args
	return p
}

// Start runs the program without a configuration of ours, and does not wait.
func Start(t testing.TB, dir string, env []string, args ...string) *Process {
	t.Helper()
	return start(t, Binary(t), dir, env, args...)
}

func start(t testing.TB, program, dir string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{Args: args, out: newLogBuffer(), err: newLogBuffer(), done: make(chan struct{})}
	p.cmd = exec.Command(program, args...) //nolint:gosec,noctx // our program, and it is ended by Cleanup
	p.cmd.Dir = dir
	p.cmd.Env = append(cleanEnv(), append([]string{SecretEnv + "=" + Secret}, env...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	p.cmd.SysProcAttr = DieWithUs()
	// Pipes of grandchildren must not keep Wait waiting.
	p.cmd.WaitDelay = 5 * time.Second
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // ExitCode tells
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("=== batchyard %s (pid %d, exit code %d)\n%s", strings.Join(args, " "), p.cmd.Process.Pid, p.cmd.ProcessState.ExitCode(), tail(p.Log(), 16<<10))
		}
	})
	return p
}

// cleanEnv is our environment without what would change a configuration.
func cleanEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BATCHYARD_") && !strings.HasPrefix(e, "PG") {
			out = append(out, e)
		}
	}
	return append(out, "NO_COLOR=1")
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

// AwaitReady waits until the process says that its stages are ready and its
// /readyz agrees.
func (p *Process) AwaitReady(t testing.TB) {
	t.Helper()
	limit := time.After(Patience)
	for p.listen == "" {
		text, more := p.err.read()
		if m := readyLine.FindStringSubmatch(text); m != nil {
			p.listen = m[1]
			break
		}
		select {
		case <-more:
		case <-p.done:
			t.Fatalf("batchyard %s ended with exit code %d before it was ready:\n%s", strings.Join(p.Args, " "), p.ExitCode(), tail(p.Log(), 4<<10))
		case <-limit:
			t.Fatalf("batchyard %s is not ready after %s", strings.Join(p.Args, " "), Patience)
		}
	}
	Eventually(t, Patience, "/readyz of batchyard "+strings.Join(p.Args, " ")+" answers 200", func() bool { return p.Readyz(t) == http.StatusOK })
}

// Readyz is the status of /readyz, 0 when it does not answer.
func (p *Process) Readyz(t testing.TB) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+"/readyz", nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// URL is the base of the API, or of health and metrics in a process without it.
func (p *Process) URL() string { return "http://" + p.listen }

// Pid is the number of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is what it wrote to standard error.
func (p *Process) Log() string { s, _ := p.err.read(); return s }

// Output is what it wrote to standard output.
func (p *Process) Output() string { s, _ := p.out.read(); return s }

// Kill ends the process with SIGKILL.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("killing batchyard: %v", err)
	}
	<-p.done
}

// Term sends SIGTERM and returns the exit code, when the process has ended.
func (p *Process) Term(t testing.TB) int {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	return p.Wait(t, 2*Patience)
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(sig))
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns the exit code.
func (p *Process) Wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatalf("batchyard %s does not end within %s:\n%s", strings.Join(p.Args, " "), within, tail(p.Log(), 4<<10))
	}
	return p.ExitCode()
}

// ExitCode is -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Again starts the same program again, on the same address, after it ended.
func (p *Process) Again(t testing.TB) *Process {
	t.Helper()
	<-p.done
	return p.in.ProcessEnv(t, []string{"BATCHYARD_API_LISTEN=" + p.listen, "BATCHYARD_OPS_LISTEN=" + p.listen}, p.Args...)
}

// Ran is a program that has ended.
type Ran struct {
	Code           int
	Stdout, Stderr string
	Took           time.Duration
}

// Run runs the program to its end, without a configuration of ours.
func Run(t testing.TB, dir string, env []string, stdin string, args ...string) Ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, Binary(t), args...) //nolint:gosec // our program
	cmd.Dir, cmd.Env = dir, append(cleanEnv(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.SysProcAttr = DieWithUs()
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("running batchyard %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return Ran{cmd.ProcessState.ExitCode(), out.String(), errs.String(), time.Since(begin)}
}

// Run runs a command with the installation's configuration to its end.
func (in *Installation) Run(t testing.TB, args ...string) Ran {
	t.Helper()
	return Run(t, in.Dir, nil, "", append(append([]string(nil), args...), "--config", in.ConfigPath)...)
}
