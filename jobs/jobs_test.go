package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const chatLine = `{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}`

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func open(t *testing.T, content string, o Options) *Plan {
	t.Helper()
	p, err := Open(t.Context(), write(t, content), nil, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// collector collects submitted tasks, duplicates included.
type collector struct {
	mu    sync.Mutex
	tasks []*task.Task
	calls int
	fail  error
}

func (c *collector) Submit(_ context.Context, tasks []*task.Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.fail != nil {
		return c.fail
	}
	c.tasks = append(c.tasks, tasks...)
	return nil
}

func (c *collector) byID() []*task.Task {
	return slices.SortedFunc(slices.Values(c.tasks), func(a, b *task.Task) int { return strings.Compare(a.ID, b.ID) })
}

func TestBothFormatsInOneFile(t *testing.T) {
	content := "\xef\xbb\xbf" + fmt.Sprintf(chatLine, "a") + "\r\n\n   \n" +
		`{"model":"e","endpoint":"/v1/embeddings","input":{"input":"x"},"priority":"high"}` + "\n" +
		`{"task_id":"own","model":"m","input":{"messages":[]},"custom_id":"a"}` // no newline at the end
	p := open(t, content, Options{Job: "j", Defaults: task.Task{Priority: task.Low, MaxAttempts: 7}})
	require.Equal(t, 3, p.Tasks)
	require.Equal(t, 5, p.Lines)
	require.Equal(t, map[string]int{"/v1/chat/completions": 2, "/v1/embeddings": 1}, p.Endpoints)

	var c collector
	reported := 0
	require.NoError(t, p.Submit(t.Context(), &c, func(n int) { reported += n }))
	require.Equal(t, 3, reported)
	ts := c.byID()
	require.Equal(t, []string{"j-0000000001", "j-0000000004", "own"}, []string{ts[0].ID, ts[1].ID, ts[2].ID})
	require.Equal(t, "a", ts[0].CustomID)
	require.Equal(t, task.Low, ts[0].Priority)
	require.Equal(t, task.High, ts[1].Priority, "a line overrides the job's defaults")
	require.JSONEq(t, `{"model":"m","messages":[]}`, string(ts[0].Input))
	for _, k := range ts {
		require.Equal(t, "j", k.JobID)
		require.Equal(t, 7, k.MaxAttempts)
		require.Equal(t, task.DefaultTenant, k.Tenant)
	}

	again := &collector{}
	q := open(t, content, Options{Job: "j", Defaults: task.Task{Priority: task.Low, MaxAttempts: 7}})
	require.NoError(t, q.Submit(t.Context(), again, nil))
	require.Equal(t, ts, again.byID(), "submitting the same job again is the same tasks")
}

func TestJobIsNamedAfterItsContent(t *testing.T) {
	a, b := open(t, fmt.Sprintf(chatLine, "a"), Options{}), open(t, fmt.Sprintf(chatLine, "a"), Options{})
	c := open(t, fmt.Sprintf(chatLine, "c"), Options{})
	require.Equal(t, a.Job, b.Job)
	require.NotEqual(t, a.Job, c.Job)
}

func TestEveryInvalidLineIsReported(t *testing.T) {
	limits := task.Limits{MaxInput: 1024}
	lines := []struct{ line, field string }{
		{fmt.Sprintf(chatLine, "ok"), "-"},
		{`{"custom_id":`, ""},
		{`[1]`, ""},
		{`{"method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, "custom_id"},
		{`{"custom_id":"1","method":"GET","url":"/v1/chat/completions","body":{"model":"m"}}`, "method"},
		{`{"custom_id":"2","method":"POST","url":"/v1/nothing","body":{"model":"m"}}`, "url"},
		{`{"custom_id":"3","method":"POST","url":"/v1/chat/completions","body":{}}`, "body.model"},
		{`{"custom_id":"4","method":"POST","url":"/v1/chat/completions","body":{"model":7}}`, "body.model"},
		{`{"custom_id":"5","method":"POST","url":"/v1/chat/completions","body":{"model":"m","stream":true}}`, "body.stream"},
		{`{"custom_id":"6","method":"POST","url":"/v1/chat/completions","body":{"model":"m"},"more":1}`, "more"},
		{fmt.Sprintf(chatLine, "ok"), "custom_id"},
		{`{"model":"m"}`, "input"},
		{`{"task_id":"x","model":"m","input":{}}`, "-"},
		{`{"task_id":"x","model":"m","input":{}}`, "task_id"},
		{`{"model":"m","input":{},"tenant":"another"}`, "tenant"},
		{`{"model":"m","input":{},"job_id":"another"}`, "job_id"},
		{`{"model":"m","input":{},"progress":{"requeues":1}}`, "progress"},
		{`{"task_id":"j-0000000001","model":"m","input":{}}`, "task_id"},
		{`{"model":"m","input":{"x":"` + strings.Repeat("a", 2000) + `"}}`, "input"},
		{`{"model":"m","input":{"x":"` + strings.Repeat("a", 70<<10) + `"}}`, ""},
	}
	var content strings.Builder
	for _, l := range lines {
		content.WriteString(l.line + "\n")
	}
	_, err := Open(t.Context(), write(t, content.String()), nil, Options{Job: "j", Limits: limits})
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	reported := map[int]string{}
	for _, l := range invalid.Lines {
		reported[l.Line] = l.Err.Field
		require.NotEmpty(t, l.Err.Problem)
		require.NotEmpty(t, l.Err.Remedy, l.Err.Error())
	}
	for i, l := range lines {
		field, bad := reported[i+1]
		require.Equal(t, l.field != "-", bad, "line %d", i+1)
		if bad {
			require.Equal(t, l.field, field, "line %d", i+1)
		}
	}
	require.Contains(t, err.Error(), "job.jsonl:7: body.model: it is missing; set it, or pass --model\n")
	require.NotContains(t, err.Error(), strings.Repeat("a", 65))
}

func TestReportIsBounded(t *testing.T) {
	_, err := Open(t.Context(), write(t, strings.Repeat("x\n", 100)), nil, Options{})
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	require.Len(t, invalid.Lines, 20)
	require.Equal(t, 80, invalid.More)
}

func TestInvalidFiles(t *testing.T) {
	_, err := Open(t.Context(), write(t, "\n\n"), nil, Options{})
	require.ErrorContains(t, err, "no task")
	_, err = Open(t.Context(), t.TempDir(), nil, Options{})
	require.ErrorContains(t, err, "regular file")
	_, err = Open(t.Context(), write(t, strings.Repeat(`{"model":"m","input":{}}`+"\n", 3)), nil, Options{Config: Config{MaxLines: 2}})
	require.ErrorContains(t, err, "jobs.max_lines")
	_, err = Open(t.Context(), "-", strings.NewReader(strings.Repeat("x", 2000)), Options{Config: Config{MaxBytes: 1024}})
	require.ErrorContains(t, err, "jobs.max_bytes")
}

func TestStandardInputIsKeptAndRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	p, err := Open(t.Context(), "-", strings.NewReader(fmt.Sprintf(chatLine, "a")), Options{})
	require.NoError(t, err)
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	require.Len(t, c.tasks, 1)
	require.NoError(t, p.Close())
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSubmitInChunksAndStops(t *testing.T) {
	var content strings.Builder
	for i := range 1050 {
		fmt.Fprintf(&content, chatLine+"\n", fmt.Sprint(i))
	}
	p := open(t, content.String(), Options{Job: "j", Config: Config{ChunkTasks: 100}})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	require.Equal(t, 11, c.calls)
	ids := map[string]bool{}
	for _, k := range c.tasks {
		ids[k.ID] = true
	}
	require.Len(t, ids, 1050)

	bad := &collector{fail: errors.New("away")}
	require.ErrorContains(t, p.Submit(t.Context(), bad, nil), "away")
	require.LessOrEqual(t, bad.calls, 11)
}

// source streams results in the order of ids, as the store does.
type source []*task.Result

func (s source) JobResults(_ context.Context, tenant, job string, fn func(*task.Result) error) error {
	rs := slices.SortedFunc(slices.Values(s), func(a, b *task.Result) int { return strings.Compare(a.TaskID, b.TaskID) })
	for _, r := range rs {
		if r.Tenant == tenant && r.JobID == job {
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

func resultsOf(c *collector) (s source) {
	for _, k := range c.tasks {
		r := task.NewResult(k, task.Success, time.Unix(1, 0))
		r.Status, r.Output, r.DeviceID = 200, task.Input("{\n \"answer\": \"<"+k.ID+">\"}"), "d1"
		s = append(s, r)
	}
	return s
}

// In whatever order the ids sort, the output has the order of the input, one line each.
func TestOutputHasTheOrderOfTheInput(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(rt, "lines")
		own := rapid.Bool().Draw(rt, "own ids")
		var content strings.Builder
		var want []string
		for i := range n {
			blank := rapid.IntRange(0, 2).Draw(rt, "blank")
			content.WriteString(strings.Repeat("\n", blank))
			custom := fmt.Sprintf("c%d", i)
			if own && i%2 == 0 {
				fmt.Fprintf(&content, `{"task_id":"%d","model":"m","input":{},"custom_id":"%s"}`+"\n", 1000-i, custom)
			} else {
				fmt.Fprintf(&content, chatLine+"\n", custom)
			}
			want = append(want, custom)
		}
		path := write(t, content.String())
		p, err := Open(t.Context(), path, nil, Options{})
		require.NoError(rt, err)
		defer p.Close()
		var c collector
		require.NoError(rt, p.Submit(t.Context(), &c, nil))
		var out bytes.Buffer
		s, err := p.WriteResults(t.Context(), resultsOf(&c), "-", &out)
		require.NoError(rt, err)
		require.Equal(rt, n, s.Written)
		require.Zero(rt, s.Missing)
		var got []string
		for line := range strings.Lines(out.String()) {
			var l struct {
				CustomID string `json:"custom_id"`
			}
			require.NoError(rt, json.Unmarshal([]byte(line), &l))
			got = append(got, l.CustomID)
		}
		require.Equal(rt, want, got)
	})
}

func TestOpenAILines(t *testing.T) {
	r := func(change func(*task.Result)) *task.Result {
		r := &task.Result{TaskID: "j-0000000001", Tenant: "t", CustomID: "c", State: task.Failed, TraceID: "trace"}
		change(r)
		return r
	}
	id := OpenAILine(r(func(*task.Result) {})).(outLine).ID
	require.Regexp(t, `^batch_req_[0-9a-f]{24}$`, id)
	for name, c := range map[string]struct {
		result *task.Result
		want   string
	}{
		"success": {r(func(r *task.Result) { r.State, r.Output, r.Status = task.Success, task.Input(`{"a":"<b>"}`), 200 }),
			`"response":{"status_code":200,"request_id":"trace","body":{"a":"<b>"}},"error":null}`},
		"device's own error": {r(func(r *task.Result) { r.Status, r.Output = 400, task.Input(`{"error":{"message":"no"}}`) }),
			`"response":{"status_code":400,"request_id":"trace","body":{"error":{"message":"no"}}},"error":null}`},
		"error without a body": {r(func(r *task.Result) {
			r.Status, r.Error = 503, &task.Error{Class: task.ClassDevice, Message: "it broke"}
		}),
			`"response":{"status_code":503,"request_id":"trace","body":{"error":{"message":"it broke","type":"server_error","param":null,"code":"device"}}},"error":null}`},
		"no HTTP answer": {r(func(r *task.Result) { r.Error = &task.Error{Class: task.ClassTimeout, Message: "no answer in time"} }),
			`"response":null,"error":{"code":"timeout","message":"no answer in time"}}`},
		"expired": {r(func(r *task.Result) { r.State = task.Expired }),
			`"response":null,"error":{"code":"batch_expired","message":"This request could not be executed before the completion window expired."}}`},
		"cancelled": {r(func(r *task.Result) { r.State = task.Cancelled }),
			`"response":null,"error":{"code":"batch_cancelled","message":"This request was cancelled before it was executed."}}`},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			require.NoError(t, encodeLine(&buf, c.result.Key(), OpenAILine(c.result)))
			require.Equal(t, `{"id":"`+id+`","custom_id":"c",`+c.want+"\n", buf.String())
		})
	}
}

func TestOutputAppearsWholeOrNotAtAll(t *testing.T) {
	p := open(t, fmt.Sprintf(chatLine, "a")+"\n"+fmt.Sprintf(chatLine, "b"), Options{Job: "j"})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	dir := t.TempDir()
	out := filepath.Join(dir, "out.jsonl")
	require.NoError(t, os.WriteFile(out, []byte("before"), 0o600))
	_, err := p.WriteResults(t.Context(), broken{resultsOf(&c)}, out, nil)
	require.ErrorContains(t, err, "broke off")
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, "before", string(b))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing incomplete is left behind")

	s, err := p.WriteResults(t.Context(), resultsOf(&c)[:1], out, nil)
	require.NoError(t, err)
	require.Equal(t, Summary{Written: 1, Missing: 1, ByState: map[task.State]int{task.Success: 1}, ByDevice: map[string]int{"d1": 1}}, s)
	b, err = os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(b, []byte("\n")), "line breaks in an answer do not break lines")
}

type broken struct{ source }

func (b broken) JobResults(ctx context.Context, tenant, job string, fn func(*task.Result) error) error {
	return errors.Join(b.source[:1].JobResults(ctx, tenant, job, fn), errors.New("the connection broke off"))
}

func TestWait(t *testing.T) {
	look := make(chan time.Time, 3)
	for range 3 {
		look <- time.Time{}
	}
	answers := []*task.Job{{Total: 2}, nil, {Total: 2, Done: 1}, {Total: 2, Done: 2, State: task.JobFinished}}
	i := 0
	w := Watch{Job: "j", At: look, Look: func(context.Context) (*task.Job, error) {
		a := answers[i]
		i++
		if a == nil {
			return nil, errors.New("Postgres is away")
		}
		return a, nil
	}}
	j, err := w.Wait(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, j.Done)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.Tasks, w.Look = 2, func(context.Context) (*task.Job, error) {
		return &task.Job{Total: 1, Done: 1, State: task.JobFinished}, nil
	}
	j, err = w.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled, "a job with fewer tasks than the file has not ended")
	require.EqualValues(t, 1, j.Done)
}

func TestLinesOfAnyLength(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SliceOfN(rapid.IntRange(0, 300_000), 1, 6).Draw(t, "lengths")
		limit := rapid.IntRange(1, 300_000).Draw(t, "limit")
		var b strings.Builder
		for _, n := range lengths {
			b.WriteString(strings.Repeat("x", n) + "\n")
		}
		r := newLineReader(strings.NewReader(b.String()), limit)
		for i, n := range lengths {
			line, err := r.read()
			require.Equal(t, i+1, r.number)
			if n > limit {
				require.ErrorIs(t, err, errLineTooLong)
			} else {
				require.NoError(t, err)
				require.Len(t, bytes.TrimSpace(line), n)
			}
		}
		_, err := r.read()
		require.ErrorIs(t, err, io.EOF)
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(chatLine, "a")))
	f.Add([]byte(`{"model":"m","input":{},"deadline":"2026-01-31T12:00:00Z"}`))
	o := &Options{Limits: task.Limits{MaxInput: 1 << 16}}
	f.Fuzz(func(t *testing.T, line []byte) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			return
		}
		var p parsed
		var err error
		fuzzing.Bound(t, len(line), func() { p, err = parseLine(line, 1, "j", o) })
		if err != nil {
			var fe *task.FieldError
			require.ErrorAs(t, err, &fe)
			return
		}
		require.NoError(t, p.task.Validate(o.Limits))
		n, ok := LineOf("j", p.task.ID)
		require.Equal(t, !p.ownID, ok && n == 1)
	})
}
