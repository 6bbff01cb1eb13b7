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

// maxLog is how many bytes of a process's latest output are kept.
const maxLog = 1 << 20

// Process is a running batchyard.
type Process struct {
	Args []string

	in     *Installation
	cmd    *exec.Cmd
	out    *logBuffer
	err    *logBuffer
	done   chan struct{} // closed when it has exited
	listen string        // address of API or ops, once ready
}

// logBuffer keeps the latest output.
type logBuffer struct {
	mu   sync.Mutex
	b    []byte
	more chan struct{} // closed and replaced by each write
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

// Process starts the program with the installation's configuration, for example
// in.Process(t, "serve", "router"), and waits until it is ready.
func (in *Installation) Process(t testing.TB, args ...string) *Process {
	t.Helper()
	return in.ProcessEnv(t, nil, args...)
}

// ProcessEnv is Process with additional environment variables, as NAME=value.
func (in *Installation) ProcessEnv(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	p := in.Begin(t, env, args...)
	p.AwaitReady(t)
	return p
}

// Begin is ProcessEnv without waiting until the process is ready.
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

// Start starts the program without a configuration, and doesn't wait.
func Start(t testing.TB, dir string, env []string, args ...string) *Process {
	t.Helper()
	return start(t, Binary(t), dir, env, args...)
}

func start(t testing.TB, program, dir string, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{Args: args, out: newLogBuffer(), err: newLogBuffer(), done: make(chan struct{})}
	p.cmd = exec.Command(program, args...) //nolint:gosec,noctx // our own program; Cleanup kills it
	p.cmd.Dir = dir
	p.cmd.Env = append(cleanEnv(), append([]string{SecretEnv + "=" + Secret}, env...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	p.cmd.SysProcAttr = EndWithParent()
	// Pipes held open by grandchildren must not block Wait.
	p.cmd.WaitDelay = 5 * time.Second
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // see ExitCode
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // fails if it has already exited
		<-p.done
		if t.Failed() {
			t.Logf("=== batchyard %s (pid %d, exit code %d)\n%s", strings.Join(args, " "), p.cmd.Process.Pid, p.cmd.ProcessState.ExitCode(), tail(p.Log(), 16<<10))
		}
	})
	return p
}

// cleanEnv returns our environment without variables that affect the configuration.
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

// AwaitReady waits until the process logs that its stages are ready and /readyz
// agrees.
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
			t.Fatalf("batchyard %s exited with code %d before it was ready:\n%s", strings.Join(p.Args, " "), p.ExitCode(), tail(p.Log(), 4<<10))
		case <-limit:
			t.Fatalf("batchyard %s is not ready after %s", strings.Join(p.Args, " "), Patience)
		}
	}
	Eventually(t, Patience, "/readyz of batchyard "+strings.Join(p.Args, " ")+" answers 200", func() bool { return p.Readyz(t) == http.StatusOK })
}

// Readyz returns the status of /readyz, or 0 if there is no answer.
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

// URL returns the base URL of the API or, in a process without API, of the ops
// endpoints.
func (p *Process) URL() string { return "http://" + p.listen }

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log returns the latest standard error.
func (p *Process) Log() string { s, _ := p.err.read(); return s }

// Output returns the latest standard output.
func (p *Process) Output() string { s, _ := p.out.read(); return s }

// Kill kills the process with SIGKILL and waits for it to exit.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("killing batchyard: %v", err)
	}
	<-p.done
}

// Term sends SIGTERM, waits for the process to exit, and returns the exit code.
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

// Done is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to exit and returns the exit code.
func (p *Process) Wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatalf("batchyard %s did not exit within %s:\n%s", strings.Join(p.Args, " "), within, tail(p.Log(), 4<<10))
	}
	return p.ExitCode()
}

// ExitCode returns the exit code, which is -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Restart waits for the process to exit and starts the same command again, on the same
// address.
func (p *Process) Restart(t testing.TB) *Process {
	t.Helper()
	<-p.done
	return p.in.ProcessEnv(t, []string{"BATCHYARD_API_LISTEN=" + p.listen, "BATCHYARD_OPS_LISTEN=" + p.listen}, p.Args...)
}

// RunResult is the result of a finished command.
type RunResult struct {
	Code           int
	Stdout, Stderr string
	Took           time.Duration
}

// Run runs a command without a configuration, and waits for it to finish.
func Run(t testing.TB, dir string, env []string, stdin string, args ...string) RunResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, Binary(t), args...) //nolint:gosec // our own program
	cmd.Dir, cmd.Env = dir, append(cleanEnv(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.SysProcAttr = EndWithParent()
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("running batchyard %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return RunResult{cmd.ProcessState.ExitCode(), out.String(), errs.String(), time.Since(begin)}
}

// Run runs a command with the installation's configuration, and waits for it to
// finish.
func (in *Installation) Run(t testing.TB, args ...string) RunResult {
	t.Helper()
	return Run(t, in.Dir, nil, "", append(append([]string(nil), args...), "--config", in.ConfigPath)...)
}
