package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// nightFile is a file of n lines whose prompts name the night.
func nightFile(t *testing.T, night string, n int) string {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"custom_id":"%s-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%s %d"}]}}`+"\n", night, i, night, i)
	}
	return write(t, night+".jsonl", b.String())
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// Another file under the name of a job is refused before anything is submitted: its lines would
// get the answers of the first one.
func TestJobNameBelongsToOneFile(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("nights")
	at := []string{"--server", f.URL, "--tenant", tenant}
	one, two := nightFile(t, "night1", 5), nightFile(t, "night2", 7)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	ok(t, append([]string{"submit", one, "--job", "daily", "--wait", "-o", out}, at...)...)
	first := readFile(t, out)
	require.Equal(t, 5, strings.Count(first, `"custom_id":"night1-`))

	r := try(t, "", append([]string{"submit", two, "--job", "daily", "--wait", "-o", out}, at...)...)
	require.Equal(t, cli.ExitUsage, r.code, r.err)
	require.Contains(t, r.err, "batchyard: job daily is another file (sha256 ")
	require.Contains(t, r.err, ", submitted 20")
	require.Contains(t, r.err, "choose another name (--job)")
	require.Equal(t, first, readFile(t, out), "nothing was written")
	require.Len(t, lines(ok(t, append([]string{"tasks", "list", "--all", "--json"}, at...)...)), 5, "nothing was submitted")

	// The same lines in another form are the same job.
	again := write(t, "again.jsonl", strings.ReplaceAll(readFile(t, one), `"role":"user",`, ` "role" : "user", `)+"\n\n")
	ok(t, append([]string{"submit", again, "--job", "daily", "--wait", "-o", out}, at...)...)
	require.Equal(t, first, readFile(t, out))
	// Under its own name, the other file runs.
	ok(t, append([]string{"submit", two, "--job", "daily-2", "--wait", "-o", out}, at...)...)
	require.Equal(t, 7, strings.Count(readFile(t, out), `"custom_id":"night2-`))
}

func TestJobsCommands(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("jobs")
	jobs := func(args ...string) []string {
		return append(append([]string{"jobs"}, args...), "--server", f.URL, "--tenant", tenant)
	}
	file := nightFile(t, "n", 4)
	ok(t, jobs("submit", file, "--job", "nightly 1", "--label", "team=a")...)
	text := ok(t, jobs("watch", "nightly 1")...)
	require.Regexp(t, `job +nightly 1\nstate +FINISHED\ntasks +4\n +SUCCESS +4\n`, text)
	require.Regexp(t, `tokens +[1-9]\d* in, [1-9]\d* out\n`, text)
	require.Regexp(t, `state +FINISHED`, ok(t, jobs("get", "nightly 1")...))
	var j task.Job
	require.NoError(t, json.Unmarshal([]byte(ok(t, jobs("get", "nightly 1", "--json")...)), &j))
	require.Equal(t, map[string]string{"team": "a"}, j.Labels)
	require.Equal(t, []any{task.JobFinished, int64(4), "openai", "n.jsonl", tenant}, []any{j.State, j.Done, j.Format, j.File, j.By})

	// Results, with and without the file.
	plain := ok(t, jobs("results", "nightly 1")...)
	for i, line := range lines(plain) {
		require.Contains(t, line, fmt.Sprintf(`"custom_id":"n-%d","response":{"status_code":200`, i))
	}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	require.Regexp(t, `results +`+out, ok(t, jobs("results", "nightly 1", "-o", out, "--file", file)...))
	require.Equal(t, plain, readFile(t, out))
	r := try(t, "", jobs("results", "nightly 1", "--file", nightFile(t, "other", 4))...)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, "is not the file of job nightly 1 (sha256 ")

	// A job that no device can run: it is explained, listed, and cancelled.
	waits := write(t, "waits.jsonl", strings.Repeat(`{"model":"m","needs":["no-such-tag"],"input":{"messages":[{"role":"user","content":"1+1?"}]}}`+"\n", 3))
	ok(t, jobs("submit", waits, "--job", "waits")...)
	require.Eventually(t, func() bool {
		causes, err := connectTo(t, f.URL, tenant).WhyJob(t.Context(), "waits")
		return err == nil && len(causes) == 1 && causes[0].Tasks == 3 && strings.Contains(causes[0].Sentence, "lack tags that it needs")
	}, 30*time.Second, 50*time.Millisecond)
	names := func(args ...string) (out []string) {
		for _, line := range lines(ok(t, jobs(append([]string{"list", "--json"}, args...)...)...)) {
			var j task.Job
			require.NoError(t, json.Unmarshal([]byte(line), &j))
			out = append(out, j.JobID)
		}
		return out
	}
	require.Equal(t, []string{"waits", "nightly 1"}, names())
	require.Equal(t, []string{"waits"}, names("--state", "running", "--since", "1h"))
	require.Equal(t, []string{"nightly 1"}, names("--prefix", "night", "--limit", "1"))
	require.Regexp(t, `JOB +STATE +TASKS +DONE`, ok(t, jobs("list")...))
	require.Equal(t, cli.ExitUsage, try(t, "", jobs("list", "--state", "DONE")...).code)
	require.Equal(t, cli.ExitUsage, try(t, "", jobs("list", "--since", "yesterday")...).code)
	require.Contains(t, try(t, "", jobs("results", "waits", "-o", out)...).err, "3 of 3 tasks of job waits have no result")

	require.Contains(t, ok(t, jobs("cancel", "waits")...), "job waits: 3 tasks asked to stop")
	r = try(t, "", jobs("watch", "waits", "--json")...)
	require.Equal(t, cli.ExitFailed, r.code)
	var s summary
	require.NoError(t, json.Unmarshal([]byte(r.out), &s))
	require.Equal(t, task.JobCancelled, s.State)
	require.Equal(t, map[task.State]int{task.Cancelled: 3}, s.ByState)
	require.Equal(t, task.ClassCancelled, s.Errors[0].Class)
	require.Equal(t, cli.ExitFailed, try(t, "", jobs("cancel", "waits")...).code, "it is too late")
	require.Contains(t, try(t, "", jobs("get", "none")...).err, "no such job")
}

func connectTo(t *testing.T, url, tenant string) *server {
	t.Helper()
	c := newCLI(strings.NewReader(""), io.Discard, io.Discard)
	c.Server, c.Tenant = url, tenant
	s, err := connect(c)
	require.NoError(t, err)
	return s
}

func TestSubmitSkipsBadLines(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("bad")
	file := write(t, "in.jsonl", readFile(t, nightFile(t, "n", 2))+"not json\n"+`{"model":"m"}`+"\n")
	at := []string{"--server", f.URL, "--tenant", tenant}
	r := try(t, "", append([]string{"submit", file}, at...)...)
	require.Equal(t, cli.ExitUsage, r.code)
	r = try(t, "", append([]string{"submit", file, "--skip-bad-lines", "--wait"}, at...)...)
	require.Equal(t, cli.ExitFailed, r.code, "not every line has an answer")
	require.Regexp(t, `tasks +2\n +SUCCESS +2\nbad lines +2, not submitted: see `+file+`\.bad\.jsonl`, r.out)
	require.Contains(t, r.err, "2 bad lines not submitted: "+file+".bad.jsonl has the errors")
	bad := lines(readFile(t, file+".bad.jsonl"))
	require.Len(t, bad, 2)
	require.Contains(t, bad[0], `"line":3`)
	require.Contains(t, bad[1], `"field":"input"`)
	other := filepath.Join(t.TempDir(), "bad")
	r = try(t, "", append([]string{"submit", file, "--skip-bad-lines", "--bad-lines", other, "--json"}, at...)...)
	require.Equal(t, cli.ExitFailed, r.code)
	require.Contains(t, r.out, `"bad_lines":2`)
	require.FileExists(t, other)
	require.Equal(t, cli.ExitUsage, try(t, "", append([]string{"submit", file, "--bad-lines", other}, at...)...).code)
}

// Ctrl-C while waiting does not stop the job, and says how to wait again.
func TestInterruptedWait(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("ctrl-c")
	waits := `{"model":"m","needs":["no-such-tag"],"input":{"messages":[{"role":"user","content":"1+1?"}]}}`
	ctx, cancel := context.WithCancel(t.Context())
	var out, errOut syncBuffer
	done := make(chan int, 1)
	c := newCLI(strings.NewReader(waits), &out, &errOut)
	now := time.Now()
	c.Now = func() time.Time { now = now.Add(time.Second); return now } // progress is shown soon
	go func() {
		done <- run(ctx, c, []string{"submit", "-", "--job", "it's long", "--wait", "--server", f.URL, "--tenant", tenant})
	}()
	require.Eventually(t, func() bool { return strings.Contains(errOut.String(), "running: ") }, 30*time.Second, 10*time.Millisecond)
	cancel()
	require.Equal(t, cli.ExitInterrupted, <-done)
	require.Contains(t, errOut.String(), "of 1 task finished; the job continues on the server\n")
	require.Contains(t, errOut.String(), `batchyard: to wait again: batchyard jobs watch 'it'\''s long' --server `+f.URL+` --tenant `+tenant+"\n")
	require.Contains(t, errOut.String(), `batchyard jobs results 'it'\''s long' -o FILE --server `)
	require.Contains(t, ok(t, "jobs", "cancel", "it's long", "--server", f.URL, "--tenant", tenant), "1 task asked to stop")
}

// After ten seconds without progress each cause is explained once.
func TestStalledJobIsExplained(t *testing.T) {
	t.Parallel()
	var looks, whys atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/why"):
			if whys.Add(1) < 3 {
				answer(w, 200, `{"causes":[{"cause":"unable m model","tasks":60,"task_id":"j-1","sentence":"It waits, for 10s: no device."}]}`)
				return
			}
			answer(w, 200, `{"causes":[{"cause":"unable m model","tasks":59,"task_id":"j-1","sentence":"It waits, for 20s: no device."},{"cause":"busy m","tasks":1,"task_id":"j-2","sentence":"Busy."}]}`)
		case whys.Load() < 4:
			looks.Add(1)
			answer(w, 200, `{"job_id":"j","state":"RUNNING","total":60,"known":60,"done":0,"tasks":{"PENDING":60}}`)
		default:
			answer(w, 200, `{"job_id":"j","state":"FINISHED","total":60,"known":60,"done":60,"tasks":{"SUCCESS":60}}`)
		}
	}))
	t.Cleanup(srv.Close)
	var out, errOut bytes.Buffer
	c := newCLI(strings.NewReader(""), &out, &errOut)
	now := noon
	c.Now = func() time.Time { now = now.Add(3 * time.Second); return now }
	require.Equal(t, cli.ExitOK, run(t.Context(), c, []string{"jobs", "watch", "j", "--server", srv.URL}))
	require.Equal(t, 1, strings.Count(errOut.String(), "running: 60 tasks like j-1: It waits, for 10s: no device.\n"), errOut.String())
	require.Equal(t, 1, strings.Count(errOut.String(), "running: task j-2: Busy.\n"), errOut.String())
	require.NotContains(t, errOut.String(), "for 20s", "a cause is told once")
	require.Greater(t, looks.Load(), whys.Load(), "not at every look")
}

// The failed lines of a job run again, and its output has the newest answers.
func TestJobsRetry(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("retries")
	at := []string{"--server", f.URL, "--tenant", tenant}
	soon := time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	file := write(t, "in.jsonl", fmt.Sprintf(`{"model":"m","custom_id":"good","input":{"messages":[{"role":"user","content":"1+1?"}]}}
{"model":"m","custom_id":"late","needs":["no-such-tag"],"deadline":%q,"input":{"messages":[{"role":"user","content":"2+2?"}]}}
`, soon))
	out := filepath.Join(t.TempDir(), "out.jsonl")
	r := try(t, "", append([]string{"submit", file, "--job", "j", "--wait", "-o", out}, at...)...)
	require.Equal(t, cli.ExitFailed, r.code, r.err)
	require.Regexp(t, `errors +1\n +expired +1, such as: `, r.out)
	good := lines(readFile(t, out))[0]

	require.Contains(t, ok(t, append([]string{"jobs", "retry", "j", "--reason", "a device with the tag is here"}, at...)...), "job j: 1 task runs again")
	require.Eventually(t, func() bool { // it waits for a device, without its deadline
		return regexp.MustCompile(`state +RUNNING`).MatchString(ok(t, append([]string{"jobs", "get", "j"}, at...)...)) // as wide as the devices' names
	}, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, ok(t, append([]string{"jobs", "cancel", "j"}, at...)...), "1 task asked to stop")
	r = try(t, "", append([]string{"jobs", "watch", "j"}, at...)...)
	require.Regexp(t, `SUCCESS +1\n +CANCELLED +1\n`, r.out)
	r = try(t, "", append([]string{"jobs", "results", "j", "-o", out, "--file", file}, at...)...)
	require.Equal(t, cli.ExitFailed, r.code)
	require.Equal(t, good, lines(readFile(t, out))[0], "what succeeded keeps its answer")
	require.Contains(t, lines(readFile(t, out))[1], `"state":"CANCELLED"`)
	require.Contains(t, ok(t, append([]string{"jobs", "retry", "j", "--json"}, at...)...), `{"job_id":"j","retried":0,"refused":0}`)
}

// The summary of a job goes to its callback once, when all of its tasks have ended.
func TestJobCallback(t *testing.T) {
	t.Parallel()
	f, tenant := running(t), unique("hook")
	got := make(chan *batchyard.Callback, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			if c, err := batchyard.ParseCallback(body); err == nil && r.Header.Get("Webhook-Id") == c.ID {
				got <- c
			}
		}
	}))
	t.Cleanup(hook.Close)
	ok(t, "submit", nightFile(t, "n", 3), "--job", "hooked", "--callback", hook.URL+"/x", "--server", f.URL, "--tenant", tenant)
	select {
	case c := <-got:
		require.Equal(t, batchyard.CallbackJob, c.Type)
		require.Equal(t, []any{"hooked", task.JobFinished, int64(3)}, []any{c.Job.JobID, c.Job.State, c.Job.Done})
		require.Positive(t, c.Job.Usage.OutputTokens)
	case <-time.After(time.Minute):
		t.Fatal("no callback came")
	}
	r := try(t, "", "submit", nightFile(t, "m", 1), "--callback", "ftp://x", "--server", f.URL, "--tenant", tenant)
	require.Equal(t, cli.ExitUsage, r.code)
	require.Contains(t, r.err, "callback.url")
}
