package jobs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

// storedOf is a file with the given content.
func storedOf(content string) *Stored {
	return &Stored{
		Name: "in.jsonl", Errors: 1000, Options: Options{Job: "batch_1", Endpoint: task.EndpointChat},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func storedLine(id string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}`, id) + "\n"
}

// Every bad line is listed with its number, whatever is wrong with it.
func TestStoredFileIsChecked(t *testing.T) {
	t.Parallel()
	content := storedLine("a") + "\n{broken\n" + storedLine("a") + strings.ReplaceAll(storedLine("b"), "chat/completions", "embeddings") +
		`{"model":"m","input":{"messages":[]}}` + "\n" + storedLine("c")
	s := storedOf(content)
	_, err := s.Check(t.Context())
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	var numbers []int
	for _, l := range invalid.Lines {
		numbers = append(numbers, l.Line)
		require.Equal(t, l.Line == 4, l.Repeat, "line %d", l.Line)
	}
	require.Equal(t, []int{3, 4, 5, 6}, numbers)

	s = storedOf(content)
	s.SkipBad = true
	c, err := s.Check(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, c.Spec.Tasks)
	require.EqualValues(t, 4, c.Spec.BadLines)
	require.Len(t, c.Errors, 4)
	require.Equal(t, "m", c.Model)

	// Another process, which has not checked it, skips the same lines.
	s = storedOf(content)
	s.SkipBad = true
	var got []int
	require.NoError(t, s.Tasks(t.Context(), 1, 4, func(line int, tk *task.Task) error {
		got = append(got, line)
		require.Equal(t, TaskID("batch_1", line), tk.ID)
		return nil
	}))
	require.Equal(t, []int{7}, got)
}

func TestStoredFileThatIsNoFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		content string
		code    string
	}{"empty": {"", CodeEmpty}, "blank": {"\n \n", CodeEmpty}, "too many": {storedLine("a") + storedLine("b") + storedLine("c"), CodeTooMany}} {
		s := storedOf(c.content)
		s.Options.Config.MaxLines = 2
		_, err := s.Check(t.Context())
		var whole *FileError
		require.ErrorAs(t, err, &whole, name)
		require.Equal(t, c.code, whole.Code, name)
	}
	s := storedOf(strings.Repeat("{}\n", 2000))
	_, err := s.Check(t.Context())
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	require.Len(t, invalid.Lines, 1000)
	require.Equal(t, 1000, invalid.More)
}

// A compressed file is read as it is, within its bound.
func TestStoredFileIsDecompressed(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := io.WriteString(z, storedLine("a")+storedLine("b"))
	require.NoError(t, errors.Join(err, z.Close()))
	c, err := storedOf(packed.String()).Check(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, c.Spec.Tasks)
	s := storedOf(packed.String())
	s.Options.Config.MaxBytes = 100
	_, err = s.Check(t.Context())
	var whole *FileError
	require.ErrorAs(t, err, &whole)
	require.Equal(t, CodeTooLarge, whole.Code)
}

// resultList is the results of a job.
type resultList []*task.Result

func (l resultList) JobResults(_ context.Context, _, _ string, fn func(*task.Result) error) error {
	for _, r := range l {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// Answers and errors together have each line once, also those that never ran.
func TestAnswersOfAStoredFile(t *testing.T) {
	t.Parallel()
	s := storedOf(storedLine("a") + storedLine("b") + storedLine("c") + storedLine("d"))
	_, err := s.Check(t.Context())
	require.NoError(t, err)
	result := func(line int, id string, state task.State, status int, output string) *task.Result {
		return &task.Result{TaskID: TaskID("batch_1", line), CustomID: id, State: state, Status: status, Output: task.Input(output), Usage: task.Usage{InputTokens: 3, OutputTokens: 4}}
	}
	from := resultList{
		result(1, "a", task.Success, 200, `{"usage":{"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":1}}}`),
		result(1, "a", task.Success, 200, `{}`), // of a page that was read twice
		result(2, "b", task.Failed, 400, `{"error":{"message":"no"}}`),
		{TaskID: "other", CustomID: "x", State: task.Success},
	}
	var out, errs bytes.Buffer
	n, err := s.WriteAnswers(t.Context(), from, Answers{Output: &out, Errors: &errs, Unfinished: task.Expired})
	require.NoError(t, err)
	require.Equal(t, Counts{Completed: 1, Failed: 3, Expired: 2, Usage: task.Usage{InputTokens: 6, OutputTokens: 8}, Cached: 2, Reasoning: 1}, n)
	read := func(b string) (ids, codes []string) {
		for line := range strings.Lines(b) {
			var l outLine
			require.NoError(t, json.Unmarshal([]byte(line), &l))
			ids = append(ids, l.CustomID)
			if l.Error != nil {
				codes = append(codes, l.Error.Code)
			}
		}
		return ids, codes
	}
	ids, _ := read(out.String())
	require.Equal(t, []string{"a"}, ids)
	ids, codes := read(errs.String())
	require.Equal(t, []string{"b", "c", "d"}, ids)
	require.Equal(t, []string{"batch_expired", "batch_expired"}, codes)
}
