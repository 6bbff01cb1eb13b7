package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/harness"
)

// chatLine and embedLine return lines in OpenAI's batch format.
func chatLine(i int) string {
	return fmt.Sprintf(`{"custom_id":"q-%04d","method":"POST","url":"/v1/chat/completions","body":{"model":"small","max_tokens":32,"messages":[{"role":"system","content":"Answer with a number."},{"role":"user","content":"A farmer has %d hens, each lays %d eggs. How many – “in all”?"}]}}`, i, i, 1+i%7)
}

func embedLine(i int) string {
	return fmt.Sprintf(`{"custom_id":"e-%04d","method":"POST","url":"/v1/embeddings","body":{"model":"embedder","input":"sentence number %d about %s"}}`, i, i, strings.Repeat("hens ", 1+i%20))
}

// writeLines writes a file of n lines and returns its path and the custom ids.
func writeLines(t testing.TB, n int, line func(int) string) (path string, ids []string) {
	t.Helper()
	var b strings.Builder
	for i := range n {
		text := line(i)
		var one struct {
			CustomID string `json:"custom_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(text), &one))
		ids = append(ids, one.CustomID)
		b.WriteString(text + "\n")
	}
	path = filepath.Join(t.TempDir(), "in.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return path, ids
}

// outLine is a line of OpenAI's batch output.
type outLine struct {
	ID       string `json:"id"`
	CustomID string `json:"custom_id"`
	Response *struct {
		StatusCode int             `json:"status_code"`
		RequestID  string          `json:"request_id"`
		Body       json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func readLines(t testing.TB, path string) (out []outLine) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var one outLine
		require.NoErrorf(t, json.Unmarshal(lines.Bytes(), &one), "%s", lines.Text())
		out = append(out, one)
	}
	require.NoError(t, lines.Err())
	return out
}

func customIDs(lines []outLine) (ids []string) {
	for _, l := range lines {
		ids = append(ids, l.CustomID)
	}
	return ids
}

func TestRunAnswersEveryLineInOrder(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	for name, line := range map[string]func(int) string{"chat": chatLine, "embeddings": embedLine} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, ids := writeLines(t, 320, line)
			out := filepath.Join(t.TempDir(), "out.jsonl")
			ran := harness.Run(t, t.TempDir(), nil, "", "run", in, "-o", out)
			require.Zerof(t, ran.Code, "%s", ran.Stderr)
			require.Contains(t, ran.Stdout, "320")
			require.Contains(t, ran.Stdout, "sim-", "the summary lists the devices")
			lines := readLines(t, out)
			require.Equal(t, ids, customIDs(lines), "each line once, in the order of the input")
			for _, l := range lines {
				require.Nil(t, l.Error)
				require.Equal(t, 200, l.Response.StatusCode)
				var body struct {
					Choices []struct{ Message struct{ Content string } }
					Data    []struct{ Embedding []float64 }
				}
				require.NoError(t, json.Unmarshal(l.Response.Body, &body))
				if name == "chat" {
					require.Len(t, body.Choices, 1)
					require.NotEmpty(t, body.Choices[0].Message.Content)
				} else {
					require.Len(t, body.Data, 1)
					require.NotEmpty(t, body.Data[0].Embedding)
				}
			}
		})
	}
}

// stranger is a third-party OpenAI-compatible server that only supports chat: no health
// check, metrics or list of models. It echoes the last message, and answers 400 if the
// message contains "refuse".
type stranger struct {
	*httptest.Server
	mu    sync.Mutex
	asked int
	other []string // requests to other paths
}

func newStranger(t *testing.T) *stranger {
	t.Helper()
	s := &stranger{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var in struct {
			Model    string
			Messages []struct{ Role, Content string }
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.URL.Path != "/v1/chat/completions" || r.Method != http.MethodPost || json.Unmarshal(body, &in) != nil || len(in.Messages) == 0 {
			s.other = append(s.other, r.Method+" "+r.URL.Path)
			http.NotFound(w, r)
			return
		}
		s.asked++
		last := in.Messages[len(in.Messages)-1].Content
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(last, "refuse") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"message":"I refuse this.","type":"invalid_request_error","param":null,"code":null}}`)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"id": "x", "object": "chat.completion", "model": in.Model,
			"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]any{"role": "assistant", "content": "echo: " + last}}},
			"usage":   map[string]any{"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
	}))
	t.Cleanup(s.Close)
	return s
}

func TestRunOnThirdPartyServers(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	one, two := newStranger(t), newStranger(t)
	in, ids := writeLines(t, 300, chatLine)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	ran := harness.Run(t, t.TempDir(), nil, "", "run", in, "-o", out, "--json",
		"--device", "gpu-1="+one.URL, "--device", "gpu-2="+two.URL+"/v1")
	require.Zerof(t, ran.Code, "%s", ran.Stderr)
	lines := readLines(t, out)
	require.Equal(t, ids, customIDs(lines))
	for i, l := range lines {
		require.Equal(t, 200, l.Response.StatusCode)
		require.Contains(t, string(l.Response.Body), fmt.Sprintf("echo: A farmer has %d hens", i), "must be the answer to this line")
	}
	require.Equal(t, 300, one.asked+two.asked, "each task runs once")
	require.Positive(t, one.asked)
	require.Positive(t, two.asked)
	var s struct {
		Total    int            `json:"tasks"`
		ByState  map[string]int `json:"by_state"`
		ByDevice map[string]int `json:"by_device"`
	}
	require.NoErrorf(t, json.Unmarshal([]byte(ran.Stdout), &s), "%s", ran.Stdout)
	require.Equal(t, 300, s.Total)
	require.Equal(t, map[string]int{"SUCCESS": 300}, s.ByState)
	require.Equal(t, map[string]int{"gpu-1": one.asked, "gpu-2": two.asked}, s.ByDevice)
}

func TestRunReportsInvalidLines(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "out.jsonl")
	lines := []string{
		chatLine(1),
		`{"task_id":"mine","model":"small","input":{"messages":[{"role":"user","content":"hello"}]}}`,
		`{"custom_id":"no-model","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":"secret words"}]}}`,
		`{"custom_id":"q-0001","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"again"}}`,
		`not json`,
	}
	ran := harness.Run(t, dir, nil, strings.Join(lines, "\n"), "run", "-", "-o", out)
	require.Equal(t, 2, ran.Code, "%s", ran.Stderr)
	for _, want := range []string{"-:3: body.model: ", "-:4: custom_id: ", "-:5: "} {
		require.Contains(t, ran.Stderr, want)
	}
	require.NotContains(t, ran.Stderr, "secret words")
	require.NotContains(t, ran.Stderr, "-:1:")
	require.NotContains(t, ran.Stderr, "-:2:")
	for line := range strings.Lines(ran.Stderr) {
		require.True(t, strings.HasPrefix(line, "batchyard: "), "%q", line)
	}
	require.NoFileExists(t, out)
}

func TestRunExitsWithOneWhenATaskFails(t *testing.T) {
	harness.OwnServices(t)
	t.Parallel()
	dev := newStranger(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "out.jsonl")
	input := strings.Join([]string{
		chatLine(1),
		`{"custom_id":"bad","method":"POST","url":"/v1/chat/completions","body":{"model":"small","messages":[{"role":"user","content":"please refuse"}]}}`,
		"",
		`{"task_id":"mine","model":"small","input":{"messages":[{"role":"user","content":"hello"}]},"labels":{"a":"b"}}`,
	}, "\n")
	ran := harness.Run(t, dir, nil, input, "run", "-", "-o", out, "--device", "d="+dev.URL)
	require.Equal(t, 1, ran.Code, "%s", ran.Stderr)
	require.Contains(t, ran.Stdout, "FAILED")
	raw, err := os.ReadFile(out) //nolint:gosec // written by the test
	require.NoError(t, err)
	got := strings.Split(strings.TrimSpace(string(raw)), "\n")
	require.Len(t, got, 3)
	var bad, own outLine
	require.NoError(t, json.Unmarshal([]byte(got[1]), &bad))
	require.Equal(t, "bad", bad.CustomID)
	require.Equal(t, 400, bad.Response.StatusCode)
	require.Contains(t, string(bad.Response.Body), "I refuse this.", "the device's own error")
	var result struct {
		TaskID string `json:"task_id"`
		State  string
		Device string `json:"device_id"`
		Labels map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(got[2]), &own))
	require.NoError(t, json.Unmarshal([]byte(got[2]), &result))
	require.Equal(t, "mine", result.TaskID)
	require.Equal(t, "SUCCESS", result.State)
	require.Equal(t, "d", result.Device)
	require.Equal(t, map[string]string{"a": "b"}, result.Labels)
	require.Equal(t, 3, dev.asked, "a 400 is not retried")
}
