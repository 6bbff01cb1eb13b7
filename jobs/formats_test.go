package jobs

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// tasksOf opens a file and returns its tasks.
func tasksOf(t *testing.T, content string, o Options) []*task.Task {
	t.Helper()
	var c collector
	require.NoError(t, open(t, content, o).Submit(t.Context(), &c, nil))
	return c.byID()
}

// invalid opens a file that has to be refused, and returns why.
func invalid(t *testing.T, content string, o Options) *InvalidError {
	t.Helper()
	var e *InvalidError
	p, err := Open(t.Context(), write(t, content), nil, o)
	if err == nil {
		require.NoError(t, p.Close())
	}
	require.ErrorAs(t, err, &e)
	return e
}

func TestBOMInFrontOfAnyLine(t *testing.T) {
	t.Parallel()
	const bom = "\xef\xbb\xbf"
	content := bom + fmt.Sprintf(chatLine, "a") + "\n" + bom + bom + fmt.Sprintf(chatLine, "b") + "\r\n" + bom + "\n" + bom + `{"model":"m","input":{}}`
	ts := tasksOf(t, content, Options{Job: "j"})
	require.Len(t, ts, 3, "a line of nothing but a byte order mark is blank")
	require.Equal(t, []string{"a", "b", ""}, []string{ts[0].CustomID, ts[1].CustomID, ts[2].CustomID})
}

func TestCompressedFiles(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	one, two := fmt.Sprintf(chatLine, "a")+"\n", fmt.Sprintf(chatLine, "b")+"\n"
	gz := func(parts ...string) string {
		var b bytes.Buffer
		for _, part := range parts { // a file of several members, as cat makes it
			w := gzip.NewWriter(&b)
			_, err := w.Write([]byte(part))
			require.NoError(t, err)
			require.NoError(t, w.Close())
		}
		return b.String()
	}
	zs := func(parts ...string) string {
		var b bytes.Buffer
		for _, part := range parts {
			w, err := zstd.NewWriter(&b)
			require.NoError(t, err)
			_, err = w.Write([]byte(part))
			require.NoError(t, err)
			require.NoError(t, w.Close())
		}
		return b.String()
	}
	plain := open(t, one+two, Options{})
	for name, content := range map[string]string{"gzip": gz(one, two), "zstd": zs(one, two), "zstd with a frame to skip": "\x50\x2a\x4d\x18\x02\x00\x00\x00ab" + zs(one+two)} {
		for _, from := range []string{"file", "-"} {
			path, stdin := write(t, content), strings.NewReader("")
			if from == "-" {
				path, stdin = "-", strings.NewReader(content)
			}
			p, err := Open(t.Context(), path, stdin, Options{})
			require.NoError(t, err, name)
			require.Equal(t, 2, p.Tasks)
			require.Equal(t, plain.Job, p.Job, "the same lines are the same job, compressed or not")
			var c collector
			require.NoError(t, p.Submit(t.Context(), &c, nil))
			require.Len(t, c.tasks, 2)
			require.NoError(t, p.Close())
		}
	}
	for name, c := range map[string]struct {
		content, want string
		o             Options
	}{
		"cut off gzip":     {gz(strings.Repeat(one, 100))[:60], "cut off", Options{}},
		"cut off zstd":     {zs(strings.Repeat(one, 100))[:40], "cut off", Options{}},
		"twice":            {gz(zs(one)), "compressed twice", Options{}},
		"too large inside": {gz(strings.Repeat(" ", 1<<20) + one), "jobs.max_bytes", Options{Config: Config{MaxBytes: 64 << 10}}},
		"too large, zstd":  {zs(strings.Repeat(" ", 1<<20) + one), "jobs.max_bytes", Options{Config: Config{MaxBytes: 64 << 10}}},
		"zip":              {"PK\x03\x04" + one, "zip archive", Options{}},
		"Parquet":          {"PAR1" + one, "Parquet", Options{}},
		"wide inside":      {gz("\xff\xfe{\x00}\x00"), "UTF-16", Options{}},
	} {
		_, err := Open(t.Context(), write(t, c.content), nil, c.o)
		require.ErrorContains(t, err, c.want, name)
		require.NotContains(t, err.Error(), "\n", name)
	}
	left, err := os.ReadDir(os.TempDir())
	require.NoError(t, err)
	require.Empty(t, left, "no temporary file is left behind")
}

func TestWideFilesAreNamedOnce(t *testing.T) {
	t.Parallel()
	text := strings.Repeat(fmt.Sprintf(chatLine, "a")+"\r\n", 3)
	wide := func(big bool) string {
		var b []byte
		for _, u := range utf16.Encode([]rune(text)) {
			if big {
				b = append(b, byte(u>>8), byte(u))
			} else {
				b = append(b, byte(u), byte(u>>8))
			}
		}
		return string(b)
	}
	for name, content := range map[string]string{"little": "\xff\xfe" + wide(false), "big": "\xfe\xff" + wide(true), "no mark": wide(false), "big, no mark": wide(true)} {
		e := invalid(t, content, Options{})
		require.Len(t, e.Lines, 1, name)
		require.Zero(t, e.More)
		require.Contains(t, e.Error(), "the file is UTF-16; save it as UTF-8")
	}
	require.Contains(t, invalid(t, "\xff\xfe\x00\x00{\x00\x00\x00", Options{}).Error(), "the file is UTF-32")
}

// Other services leave out what theirs fills in.
func TestLinesOfOtherServices(t *testing.T) {
	t.Parallel()
	flags := Options{Job: "j", Defaults: task.Task{Endpoint: task.EndpointEmbeddings, Model: "from-flag"}}
	for name, c := range map[string]struct {
		line                      string
		o                         Options
		customID, endpoint, model string
	}{
		"Mistral and Together":    {`{"custom_id":"a","body":{"input":"x"}}`, flags, "a", task.EndpointEmbeddings, "from-flag"},
		"a model of its own":      {`{"custom_id":"a","body":{"model":"m","input":"x"}}`, flags, "a", task.EndpointEmbeddings, "m"},
		"an endpoint of its own":  {`{"custom_id":"a","url":"/v1/chat/completions","body":{}}`, flags, "a", task.EndpointChat, "from-flag"},
		"a null model":            {`{"custom_id":"a","url":"/v1/completions","body":{"model":null}}`, flags, "a", task.EndpointCompletions, "from-flag"},
		"a task without either":   {`{"custom_id":"a","input":{}}`, flags, "a", task.EndpointEmbeddings, "from-flag"},
		"a task with both":        {`{"model":"m","endpoint":"/v1/responses","input":{}}`, flags, "", task.EndpointResponses, "m"},
		"Azure":                   {`{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"m"}}`, Options{}, "a", task.EndpointChat, "m"},
		"Azure with a deployment": {`{"custom_id":"a","method":"POST","url":"/openai/deployments/gpt/chat/completions?api-version=1","body":{"model":"m"}}`, Options{}, "a", task.EndpointChat, "m"},
		"a whole URL":             {`{"custom_id":"a","method":"POST","url":"https://api.openai.com/v1/embeddings","body":{"model":"m"}}`, Options{}, "a", task.EndpointEmbeddings, "m"},
		"Groq":                    {`{"custom_id":"a","method":"POST","url":"https://api.groq.com/openai/v1/completions/","body":{"model":"m"}}`, Options{}, "a", task.EndpointCompletions, "m"},
		"no slash":                {`{"custom_id":"a","method":"POST","url":"v1/chat/completions","body":{"model":"m"}}`, Options{}, "a", task.EndpointChat, "m"},
		"small letters":           {`{"custom_id":"a","method":"post","url":"/v1/responses","body":{"model":"m"}}`, Options{}, "a", task.EndpointResponses, "m"},
		"no method":               {`{"custom_id":"a","url":"/v1/moderations","body":{"model":"m"}}`, Options{}, "a", task.EndpointModerations, "m"},
		"a number as id":          {`{"custom_id":17,"method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, Options{}, "17", task.EndpointChat, "m"},
		"a large number":          {`{"custom_id":-12345678901234567890,"method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, Options{}, "-12345678901234567890", task.EndpointChat, "m"},
	} {
		ts := tasksOf(t, c.line, c.o)
		require.Len(t, ts, 1, name)
		require.Equal(t, []string{c.customID, c.endpoint, c.model}, []string{ts[0].CustomID, ts[0].Endpoint, ts[0].Model}, name)
	}
}

// A file in a format that is not read gets one error, which names the file's own field.
func TestForeignFilesGetOneError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ lines, field, says string }{
		"Mistral, no flags":   {`{"custom_id":"%d","body":{"model":"m"}}`, "url", "--endpoint"},
		"Anthropic":           {`{"custom_id":"%d","params":{"model":"claude","max_tokens":9,"messages":[]}}`, "params", "Anthropic"},
		"Anthropic's path":    {`{"custom_id":"%d","method":"POST","url":"/v1/messages","body":{"model":"m"}}`, "url", "Anthropic"},
		"Gemini":              {`{"key":"%d","request":{"contents":[]}}`, "request", "Gemini"},
		"Bedrock":             {`{"recordId":"%d","modelInput":{}}`, "modelInput", "Bedrock"},
		"images":              {`{"custom_id":"%d","method":"POST","url":"/v1/images/generations","body":{"model":"m"}}`, "url", "unknown endpoint"},
		"a body alone":        {`{"model":"%d","messages":[]}`, "messages", "body of a request alone"},
		"an array of objects": {`[{"custom_id":"%d"}]`, "", "jq -c '.[]'"},
	} {
		var content strings.Builder
		for i := range 30 {
			fmt.Fprintf(&content, c.lines+"\n", i)
		}
		e := invalid(t, content.String(), Options{})
		require.Len(t, e.Lines, 1, name)
		require.Zero(t, e.More, name)
		require.Equal(t, c.field, e.Lines[0].Err.Field, name)
		require.Contains(t, e.Error(), c.says, name)
	}
	for name, content := range map[string]string{
		"pretty array": "[\n  {\n    \"custom_id\": \"a\"\n  },\n  {}\n]\n", "array in one line": `[{"custom_id":"a"},{"custom_id":"b"}]`, "array by lines": "[{\"custom_id\":\"a\"},\n{\"custom_id\":\"b\"}]",
		"pretty objects": "{\n  \"custom_id\": \"a\",\n  \"body\": {}\n}\n{\n}\n", "object by lines": "{ \"custom_id\": \"a\",\n  \"body\": {} }\n",
	} {
		e := invalid(t, content, Options{})
		require.Len(t, e.Lines, 1, name)
		require.Contains(t, e.Error(), "jq -c", name)
	}
	e := invalid(t, fmt.Sprintf(chatLine, "a")+"\n"+strings.Repeat(`{"custom_id":"x","params":{}}`+"\n", 3), Options{})
	require.Len(t, e.Lines, 3, "in a file that has lines of ours, each bad line counts")
}

func TestLinesNameTheirOwnFields(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, field, problem, remedy string }{
		{`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"a","role":"b"}]}}`, "body", "the member role twice", "once"},
		{`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":"\ud800"}}`, "body", "surrogate pair", "whole characters"},
		{`{"custom_id":"x\udfff","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, "custom_id", "surrogate pair", "whole characters"},
		{`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"` + strings.Repeat("m", 300) + `"}}`, "body.model", "300 characters", "shorten"},
		{`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"Model":"m"}}`, "body.model", "missing", "--model"},
		{`{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":""}}`, "body.model", "missing", "--model"},
		{`{"custom_id":"a","method":"GET","url":"/v1/chat/completions","body":{"model":"m"}}`, "method", "only POST", "POST"},
		{`{"custom_id":1.5,"method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, "custom_id", "neither", "integer"},
		{`{"custom_id":{},"method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, "custom_id", "neither", "integer"},
		{`{"custom_id":"a","custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}`, "custom_id", "twice", "once"},
		{`{"custom_id":"a","Url":"/v1/responses","url":"/v1/chat/completions","body":{"model":"m"}}`, "Url", "unknown field", "`url`"},
		{`{"customId":"a","url":"/v1/chat/completions","body":{"model":"m"}}`, "customId", "unknown field", "`custom_id`"},
		{`{"model":"m","input":{},"depends_on":["a"]}`, "depends_on", "not supported", "omit it"},
		{`{"model":"m","input":{},"Priority":"high"}`, "Priority", "unknown field", "`priority`"},
		{`{"model":"m","input":{},"trace_id":"00000000000000000000000000000000"}`, "trace_id", "not a W3C trace id", "omit it"},
		{`{"model":"m","input":{},"progress":{}}`, "progress", "internal state", "omit it"},
	} {
		e := invalid(t, c.line, Options{})
		require.Len(t, e.Lines, 1, c.line)
		require.Equal(t, c.field, e.Lines[0].Err.Field, c.line)
		require.Contains(t, e.Lines[0].Err.Problem, c.problem, c.line)
		require.Contains(t, e.Lines[0].Err.Remedy, c.remedy, c.line)
	}
	e := invalid(t, `{"custom_id":17,"url":"/v1/chat/completions","body":{"model":"m"}}`+"\n"+fmt.Sprintf(chatLine, "17"), Options{})
	require.Equal(t, "custom_id", e.Lines[0].Err.Field, "the number 17 is the text 17")
	ts := tasksOf(t, `{"model":"m","input":{},"trace_id":"0AF7651916CD43DD8448EB211C80319C"}`, Options{})
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", ts[0].TraceID)
}

// An answer is one line for every program, whatever characters it has.
func TestAnswersAreOneLineForEveryReader(t *testing.T) {
	t.Parallel()
	p := open(t, fmt.Sprintf(chatLine, "a\u2028b")+"\n"+`{"task_id":"own","model":"m","input":{},"labels":{"a":"\u0085"}}`, Options{Job: "j"})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	rs := resultsOf(&c)
	for _, r := range rs {
		r.Output = task.Input("{\"text\":\"one\u2028two\u2029three\u0085four\\u000bfive\"}")
	}
	var out bytes.Buffer
	_, err := p.WriteResults(t.Context(), rs, "-", &out)
	require.NoError(t, err)
	lines := regexp.MustCompile("[\n\v\f\r\x1c\x1d\x1e\u0085\u2028\u2029]").Split(out.String(), -1)
	require.Len(t, lines, 3, "%q", out.String()) // the last is empty
	for _, line := range lines[:2] {
		require.True(t, json.Valid([]byte(line)), "%q", line)
		require.Contains(t, line, `one\u2028two\u2029three\u0085four`)
	}
	require.Contains(t, lines[0], `"custom_id":"a\u2028b"`)
}
