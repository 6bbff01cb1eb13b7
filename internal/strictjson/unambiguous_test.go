package strictjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/internal/strictjson"
)

const deepest = 128

// members is an object with n members; the last name is replaced.
func members(n int, last string) string {
	var b strings.Builder
	for i := range n - 1 {
		fmt.Fprintf(&b, `"n%d":%d,`, i, i)
	}
	return "{" + b.String() + `"` + last + `":0}`
}

func TestAmbiguousJSONIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"a":1,"a":1}`, `{"a":1,"b":2,"a":3}`, `[{"x":{"a":1,"a":2}}]`, `{"a":{"b":1},"a":{"b":1}}`, `{"":1,"":2}`, `{"mod\u0065l":1,"model":2}`, `{"model":1,"mod\u0065l":2}`,
		`{"\u00e9":1,"é":2}`, `{"\ud83d\ude00":1,"😀":2}`, `{"\/":1,"/":2}`, `{"\"":1,"\u0022":2}`, `{"\b\f\n\r\t":1,"\u0008\u000c\u000a\u000d\u0009":2}`,
		members(33, "n0"), members(34, "n31"), members(5000, "n4998"), members(5000, "n0"), members(100, `\u006e5`),
	} {
		var twice *strictjson.DuplicateError
		require.ErrorAs(t, strictjson.CheckUnambiguous([]byte(text), deepest), &twice, text)
		require.True(t, strictjson.Valid([]byte(text), deepest), "it is JSON all the same")
	}
	for _, text := range []string{`"\ud800"`, `"x\udfff"`, `"\udc00\ud800"`, `"\ud800\ud800\udc00"`, `"\ud800x\udc00"`, `"\uD800\\udc00"`, `{"\ud800":1}`, `["a",{"b":"\ude00"}]`, `"\ud83d\ude00\ude00"`} {
		require.ErrorIs(t, strictjson.CheckUnambiguous([]byte(text), deepest), strictjson.ErrHalfPair, text)
		require.True(t, strictjson.Valid([]byte(text), deepest), text)
	}
	for _, text := range []string{`{"a":1,"b":{"a":1},"c":[{"a":1},{"a":2}]}`, `{"a":1,"A":2}`, `"\ud83d\ude00\ud83d\ude01"`, `"\\ud800"`, `{"é":1,"e\u0301":2}`, members(33, "x"), members(5000, "x"), members(40, `\u0078`), ` {} `} {
		require.NoError(t, strictjson.CheckUnambiguous([]byte(text), deepest), text)
	}
	for _, text := range []string{`{"a":1,"a":2`, `{"a":1,"a":2}}`, `{"a":"\ud800",}`, `{"a":1,"a":}`, "{\"a\":1,\"a\":\"\xff\"}", `{"a" 1}`, `{"a":1,}`, `{1:2}`} {
		err := strictjson.CheckUnambiguous([]byte(text), deepest)
		require.Error(t, err)
		require.Equal(t, strictjson.Check([]byte(text), deepest), err, "%s: what is wrong with the syntax comes first", text)
	}
	nested := strings.Repeat(`{"a":`, deepest+1) + "1" + strings.Repeat("}", deepest+1)
	require.ErrorContains(t, strictjson.CheckUnambiguous([]byte(nested), deepest), "nested deeper")
	require.ErrorIs(t, strictjson.CheckUnambiguous([]byte(members(strictjson.MaxNames+1, "x")), deepest), strictjson.ErrManyNames)
	require.NoError(t, strictjson.CheckUnambiguous([]byte("["+members(40_000, "x")+","+members(40_000, "x")+"]"), deepest), "objects that are closed do not count")
}

// ambiguous is what CheckUnambiguous looks for, found with encoding/json: a duplicate name or half
// of a surrogate pair.
func ambiguous(b []byte) bool {
	half := false
	for i := 0; i < len(b); i++ { // valid JSON has backslashes only in strings
		if b[i] != '\\' {
			continue
		}
		i++
		if r, ok := strictjson.Hex4(b, i+1); b[i] == 'u' && ok && utf16.IsSurrogate(r) {
			low, ok := strictjson.Hex4(b, min(i+7, len(b)))
			if !ok || b[i+5] != '\\' || b[i+6] != 'u' || utf16.DecodeRune(r, low) == utf8.RuneError {
				half = true
			}
			i += 6
		}
	}
	if half {
		return true
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	var open []map[string]bool // nil: an array
	key := false               // the next string is a name
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch v := token.(type) {
		case json.Delim:
			switch v {
			case '{':
				open = append(open, map[string]bool{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			key = len(open) > 0 && open[len(open)-1] != nil
			continue
		case string:
			if key {
				names := open[len(open)-1]
				if names[v] {
					return true
				}
				names[v], key = true, false
				continue
			}
		}
		key = len(open) > 0 && open[len(open)-1] != nil
	}
}

func sameAmbiguity(t interface {
	Helper()
	Fatalf(string, ...any)
}, b []byte) {
	t.Helper()
	err := strictjson.CheckUnambiguous(b, deepest)
	if errors.Is(err, strictjson.ErrManyNames) {
		return
	}
	want := strictjson.CheckSlowly(b, deepest) != nil || ambiguous(b)
	if (err != nil) != want {
		t.Fatalf("%q: %v, want an error: %v", b, err, want)
	}
}

func TestAmbiguityIsFoundInAnyObject(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b", "aa", "ab", "ba", "", `\u0061`, "é", `\u00e9`, `\n`, `\ud83d\ude00`, "😀", `\ud800`, "c1", "c2", "c3", "c4", "d1", "d2", "d3"})
		var value func(depth int) string
		value = func(depth int) string {
			if depth == 0 || rapid.Bool().Draw(t, "leaf") {
				return `"` + name.Draw(t, "text") + `"`
			}
			parts := make([]string, rapid.IntRange(0, 45/depth).Draw(t, "members"))
			for i := range parts {
				suffix := ""
				if rapid.IntRange(0, 9).Draw(t, "same") > 0 {
					suffix = fmt.Sprint(i)
				}
				parts[i] = `"` + name.Draw(t, "name") + suffix + `":` + value(depth-1)
			}
			return "{" + strings.Join(parts, ",") + "}"
		}
		sameAmbiguity(t, []byte(value(3)))
	})
}

// FuzzUnambiguous compares with encoding/json, and checks that memory stays proportional.
func FuzzUnambiguous(f *testing.F) {
	for _, text := range []string{`{"a":1,"a":2}`, `{"a":"\ud800"}`, members(40, "n3"), `[{"\u0061":{}},"😀"]`, members(300, `\u006e`), `"\ud83d\ude00"`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzing.Bound(t, len(b), func() { _ = strictjson.CheckUnambiguous(b, deepest) })
		sameAmbiguity(t, b)
	})
}
