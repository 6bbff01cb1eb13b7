package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/jobs"
	"github.com/batchyard/batchyard/task"
)

// Mistakes are reported before anything is started or run.
func TestRunRefusesAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tasks.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(`{"model":"m","input":{"messages":[]}}`+"\n"), 0o600))
	for want, args := range map[string][]string{
		`--device foo: url: it is not an abs`:          {"run", file, "--device", "foo=bar"},
		`--device foo: write NAME=URL`:                 {"run", file, "--device", "foo"},
		`--device a b: the name`:                       {"run", file, "--device", "a b=http://127.0.0.1"},
		"cannot write results to":                      {"run", file, "-o", filepath.Join(t.TempDir(), "none", "out.jsonl")},
		"it is a directory":                            {"run", file, "-o", t.TempDir()},
		`url: it is not an absolute http or https URL`: {"dev", "--device", "x=ftp://127.0.0.1"},
		"-o - and --json both write to standard out":   {"run", file, "-o", "-", "--json"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, cli.ExitUsage, run(t.Context(), newCLI(strings.NewReader(""), &out, &errs), args), args)
		require.Contains(t, errs.String(), want)
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
	}
}

// --timeout reports that it was reached, and how far the job was; the output says the same.
func TestRunThatTakesTooLong(t *testing.T) {
	t.Parallel()
	f := running(t)
	plan, err := jobs.Open(t.Context(), openAIFile(t, 1), nil, jobs.Options{Job: unique("late"), Limits: task.Limits{MaxInput: 1 << 20}})
	require.NoError(t, err)
	defer func() { require.NoError(t, plan.Close()) }()
	ctx, cancel := context.WithDeadlineCause(t.Context(), time.Now(), errors.New("--timeout (4s) passed"))
	defer cancel()
	c, _ := shownAt()
	out := filepath.Join(t.TempDir(), "out.jsonl")
	s, err := runPlan(ctx, c, f.System, jobRun{plan: plan, flags: runFlags{fileFlags: fileFlags{output: out}}})
	require.EqualError(t, err, "--timeout (4s) passed with 0 of 1 task finished; nothing is kept; with --data-dir DIR, --resume could continue")
	require.Equal(t, cli.ExitFailed, cli.CodeOf(err))
	require.Equal(t, 1, s.Missing)
	require.Contains(t, readFile(t, out), `"custom_id":"c0","response":null,"error":{"code":"batch_expired"`)

	started := filepath.Join(t.TempDir(), "out.jsonl")
	r := try(t, "", "run", openAIFile(t, 2), "--timeout", "1ms", "-o", started)
	require.Contains(t, r.err, "--timeout (1ms) passed")
	require.Equal(t, cli.ExitFailed, r.code)
}

// halting is a device that answers the first requests, and the others once it may.
type halting struct {
	*httptest.Server
	mu     sync.Mutex
	asked  map[string]int
	first  int           // requests that are answered at once
	halted chan struct{} // closed: the others are answered too
}

func newHalting(t *testing.T, first int) *halting {
	t.Helper()
	h := &halting{asked: map[string]int{}, first: first, halted: make(chan struct{})}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Messages []struct{ Content string } }
		if r.URL.Path != "/v1/chat/completions" || json.NewDecoder(r.Body).Decode(&in) != nil {
			http.NotFound(w, r)
			return
		}
		h.mu.Lock()
		h.asked[in.Messages[0].Content]++
		n := 0
		for _, k := range h.asked {
			n += k
		}
		h.mu.Unlock()
		if n > first {
			select {
			case <-h.halted:
			case <-r.Context().Done():
				return
			}
		}
		_, _ = fmt.Fprintf(w, `{"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"to %s"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}`, in.Messages[0].Content)
	}))
	t.Cleanup(h.Close)
	return h
}

// What was interrupted is written as far as it is, and --resume brings the rest; what has an answer does not run again.
func TestRunContinues(t *testing.T) {
	t.Parallel()
	const n = 6
	d := newHalting(t, 2)
	file, out := openAIFile(t, n), filepath.Join(t.TempDir(), "out.jsonl")
	dir, err := os.MkdirTemp("", "test-batchyard-run-*")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755)) // Postgres may run as another user
	args := []string{"run", file, "-o", out, "--data-dir", dir, "--device", "d=" + d.URL, "--slots", "1"}
	require.Contains(t, try(t, "", append(args, "--resume")...).err, "does not exist or is empty")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)

	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr syncBuffer
	c := newCLI(strings.NewReader(""), &stdout, &stderr)
	now := time.Now()
	var mu sync.Mutex
	c.Now = func() time.Time { // progress is shown soon
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(2 * time.Second)
		return now
	}
	done := make(chan int, 1)
	go func() { done <- run(ctx, c, args) }()
	require.Eventually(t, func() bool { return strings.Contains(stderr.String(), "running: 2 of 6 tasks") }, time.Minute, 10*time.Millisecond, "%s", stderr.String())
	cancel()
	require.Eventually(t, func() bool { _, err := os.Stat(out); return err == nil }, time.Minute, 10*time.Millisecond)
	close(d.halted) // the stages drain
	require.Equal(t, cli.ExitInterrupted, <-done, stderr.String())
	require.Contains(t, stderr.String(), "batchyard: interrupted with 2 of 6 tasks finished; continue with: batchyard run "+file+" --data-dir "+dir+" --device d="+d.URL+" --output "+out+" --slots 1 --resume\n")
	require.Regexp(t, `tasks +6\n +SUCCESS +2\n +without a result +4\n`, stdout.String())
	text := readFile(t, out)
	require.Equal(t, n, strings.Count(text, "\n"))
	require.Equal(t, n-2, strings.Count(text, `"error":{"code":"batch_cancelled"`))

	r := try(t, "", append(args, "--resume")...)
	require.Equal(t, cli.ExitOK, r.code, r.err)
	for i, line := range lines(readFile(t, out)) {
		require.Contains(t, line, fmt.Sprintf(`"custom_id":"c%d"`, i))
		require.Contains(t, line, fmt.Sprintf(`"content":"to %d"`, i))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Len(t, d.asked, n)
	for i, line := range lines(text) { // a request that was cut off is repeated
		if strings.Contains(line, `"status_code":200`) {
			require.Equal(t, 1, d.asked[fmt.Sprint(i)], "%d of %v", i, d.asked)
		}
	}
}

// A device that does not come up is reported at once.
func TestRunReportsAbsentDevices(t *testing.T) {
	t.Parallel()
	up := newHalting(t, 10)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(locked.Close)
	r := try(t, "", "run", openAIFile(t, 2), "--device", "up="+up.URL, "--device", "x="+down.URL, "--device", "y="+locked.URL)
	require.Equal(t, cli.ExitOK, r.code, r.err)
	require.Equal(t, 1, strings.Count(r.err, "device x at "+down.URL+" does not answer: dial tcp "), r.err)
	require.Contains(t, r.err, "connection refused; start the server, or check the port in its url; it gets no tasks until it does\n")
	require.Contains(t, r.err, "device y at "+locked.URL+" does not answer: health check: status 401; set the key of the device in key_env or key_file; it gets no tasks until it does")
	require.Less(t, strings.Index(r.err, "device x"), strings.Index(r.err, "running: "))
	require.NotContains(t, r.err, "device up")
}
