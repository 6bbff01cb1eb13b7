package jobs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// The fingerprint covers what the lines ask for and how the answers are called, and nothing else.
func TestFingerprint(t *testing.T) {
	line := `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","temperature":1,"messages":[{"role":"user","content":"x"}]}}`
	one := open(t, line+"\n"+fmt.Sprintf(chatLine, "b"), Options{Job: "j"})
	same := map[string]string{
		"white space":      "\xef\xbb\xbf" + strings.ReplaceAll(line, ":", " : ") + "\r\n" + fmt.Sprintf(chatLine, "b") + "\n\n",
		"order of members": `{"body":{"messages":[{"content":"\u0078","role":"user"}],"model":"m","temperature":1},"url":"/v1/chat/completions","method":"POST","custom_id":"a"}` + "\n" + fmt.Sprintf(chatLine, "b"),
	}
	for name, content := range same {
		require.Equal(t, one.SHA256, open(t, content, Options{Job: "j"}).SHA256, name)
	}
	require.Equal(t, one.SHA256, open(t, line+"\n"+fmt.Sprintf(chatLine, "b"), Options{Job: "other", Defaults: task.Task{Priority: task.High}}).SHA256, "priority")
	for name, content := range map[string]string{
		"another prompt":    strings.Replace(line, `"x"`, `"y"`, 1) + "\n" + fmt.Sprintf(chatLine, "b"),
		"another custom_id": line + "\n" + fmt.Sprintf(chatLine, "c"),
		"another order":     fmt.Sprintf(chatLine, "b") + "\n" + line,
		"one line less":     line,
		"a line elsewhere":  line + "\n\n" + fmt.Sprintf(chatLine, "b"),
		"an id of its own":  line + "\n" + `{"task_id":"b","model":"m","input":{"model":"m","messages":[]}}`,
	} {
		other := open(t, content, Options{})
		require.NotEqual(t, one.SHA256, other.SHA256, name)
		require.NotEqual(t, open(t, line+"\n"+fmt.Sprintf(chatLine, "b"), Options{}).Job, other.Job, name)
	}
}

func TestSpec(t *testing.T) {
	p := open(t, fmt.Sprintf(chatLine, "a")+"\n\n"+`{"model":"m","input":{}}`, Options{Defaults: task.Task{Tenant: "acme"}})
	s := p.Spec()
	require.NoError(t, s.Validate())
	require.Equal(t, &task.JobSpec{JobID: p.Job, Tenant: "acme", SHA256: p.SHA256, Tasks: 2, Lines: 3, Bytes: p.Bytes, File: "job.jsonl", Format: task.FormatMixed}, s)
	require.Equal(t, task.FormatOpenAI, open(t, fmt.Sprintf(chatLine, "a"), Options{}).Spec().Format)
	require.Equal(t, task.FormatBatchyard, open(t, `{"model":"m","input":{}}`, Options{}).Spec().Format)
	require.Equal(t, strings.Repeat("ä", task.MaxFileName), fileName("/x/"+strings.Repeat("ä", 300)))
	require.Equal(t, "ab", fileName("a\x00\nb"))
}

func TestBadLinesAreSkipped(t *testing.T) {
	bad := &BadLines{Path: filepath.Join(t.TempDir(), "in.bad.jsonl")}
	long := `{"model":"m","input":{"x":"` + strings.Repeat("a", 80<<10) + `"}}`
	content := strings.Join([]string{fmt.Sprintf(chatLine, "a"), `{"custom_id":"b"`, fmt.Sprintf(chatLine, "a"), fmt.Sprintf(chatLine, "c"), "\xff", long}, "\n")
	p := open(t, content, Options{Job: "j", Bad: bad, Limits: task.Limits{MaxInput: 1024}})
	require.Equal(t, []int{2, 4, 6}, []int{p.Tasks, p.Bad, p.Lines})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	require.Equal(t, []string{"j-0000000001", "j-0000000004"}, []string{c.byID()[0].ID, c.byID()[1].ID})
	var out bytes.Buffer
	_, err := p.WriteResults(t.Context(), resultsOf(&c), "-", &out)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(out.String(), "\n"))

	text, err := os.ReadFile(bad.Path)
	require.NoError(t, err)
	var got []badLine
	for line := range strings.Lines(string(text)) {
		var b badLine
		require.NoError(t, json.Unmarshal([]byte(line), &b))
		require.NotEmpty(t, b.Problem)
		got = append(got, b)
	}
	require.Len(t, got, 4)
	require.Equal(t, []int{2, 3, 5, 6}, []int{got[0].Line, got[1].Line, got[2].Line, got[3].Line})
	broken := `{"custom_id":"b"`
	require.Equal(t, broken, got[0].Text, "what to repair")
	require.Equal(t, badLine{Line: 3, Field: "custom_id", Problem: "line 1 has the same", Remedy: "give each line its own", Text: fmt.Sprintf(chatLine, "a")}, got[1])
	require.Empty(t, got[2].Text+got[3].Text)

	// The good lines are the job: repairing a bad one makes another file.
	require.NotEqual(t, p.SHA256, open(t, strings.Replace(content, `{"custom_id":"b"`, fmt.Sprintf(chatLine, "b"), 1), Options{Job: "j", Bad: &BadLines{}, Limits: task.Limits{MaxInput: 1024}}).SHA256)

	_, err = Open(t.Context(), write(t, "x\ny\n"), nil, Options{Bad: &BadLines{Path: bad.Path}})
	require.ErrorContains(t, err, "every line is invalid")
	none := &BadLines{Path: filepath.Join(t.TempDir(), "none")}
	open(t, fmt.Sprintf(chatLine, "a"), Options{Bad: none})
	require.NoFileExists(t, none.Path)
}

// What has not finished gets a line too, in its place.
func TestUnfinishedLines(t *testing.T) {
	p := open(t, strings.Join([]string{fmt.Sprintf(chatLine, "a"), fmt.Sprintf(chatLine, "b"), `{"task_id":"own","model":"m","input":{}}`, fmt.Sprintf(chatLine, "d")}, "\n"), Options{Job: "j"})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	for state, code := range map[task.State]string{task.Expired: "batch_expired", task.Cancelled: "batch_cancelled"} {
		var out bytes.Buffer
		s, err := p.WriteOutput(t.Context(), resultsOf(&collector{tasks: c.byID()[1:2]}), Output{Path: "-", Stdout: &out, Unfinished: state})
		require.NoError(t, err)
		require.Equal(t, []int{1, 3}, []int{s.Written, s.Missing})
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		require.Len(t, lines, 4)
		require.Contains(t, lines[0], `"custom_id":"a","response":null,"error":{"code":"`+code+`"`)
		require.Contains(t, lines[1], `"custom_id":"b","response":{"status_code":200`)
		require.Contains(t, lines[2], `"task_id":"own","tenant":"default","state":"`+string(state)+`"`)
		require.Contains(t, lines[3], `"custom_id":"d","response":null,"error":{"code":"`+code+`"`)
	}
}

// Without the file, a job's own format decides.
func TestExport(t *testing.T) {
	p := open(t, fmt.Sprintf(chatLine, "a")+"\n"+`{"model":"m","input":{}}`, Options{Job: "j"})
	var c collector
	require.NoError(t, p.Submit(t.Context(), &c, nil))
	for format, openAI := range map[string][]bool{task.FormatOpenAI: {true, true}, task.FormatBatchyard: {false, false}, task.FormatMixed: {true, false}, "": {false, false}} {
		var out bytes.Buffer
		s, err := Export(t.Context(), resultsOf(&c), &task.Job{JobID: "j", Tenant: "default", Format: format, Total: 5}, Output{Path: "-", Stdout: &out})
		require.NoError(t, err)
		require.Equal(t, []int{2, 3}, []int{s.Written, s.Missing})
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		for i, want := range openAI {
			require.Equal(t, want, strings.Contains(lines[i], `"response"`), "%s, %d", format, i)
		}
	}
}
