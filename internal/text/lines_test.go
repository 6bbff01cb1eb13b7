package text_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/text"
)

// pythonBreaks are the characters at which Python's str.splitlines ends a line; Node's readline
// uses some of them.
var pythonBreaks = regexp.MustCompile("[\n\v\f\r\x1c\x1d\x1e\u0085\u2028\u2029]")

func TestJSONLinesAreOneLineForEveryReader(t *testing.T) {
	t.Parallel()
	all := "a\n\v\f\r\x1c\x1d\x1e\u0085\u2028\u2029\u00c2\u2027z é 語"
	raw := json.RawMessage(`{"answer":"` + "\u0085 \u2028\u2029 \\u2028" + `"}`)
	var out bytes.Buffer
	enc := json.NewEncoder(text.JSONLines(&out))
	enc.SetEscapeHTML(false)
	require.NoError(t, enc.Encode(map[string]any{all: all, "raw": raw}))
	line := out.String()
	require.Equal(t, [][]int{{len(line) - 1, len(line)}}, pythonBreaks.FindAllStringIndex(line, -1), "%q", line)

	var got map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &got))
	require.Equal(t, all, got[all])
	require.Equal(t, map[string]any{"answer": "\u0085 \u2028\u2029 \u2028"}, got["raw"])
	require.Contains(t, line, "é 語", "other characters stay as they are")
}
