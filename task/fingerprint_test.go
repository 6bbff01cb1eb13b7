package task_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/task"
)

func asking(input string) *task.Task {
	return &task.Task{ID: "a", Tenant: "t", Model: "m", Endpoint: task.EndpointChat, Input: task.Input(input)}
}

func TestSameRequestSameFingerprint(t *testing.T) {
	for _, same := range [][]string{
		{`{"a":1,"b":[1,2]}`, `{"b":[1,2],"a":1}`, " {\n\t\"b\" : [ 1 , 2 ] , \"a\":1 } "},
		{`{"messages":[{"role":"user","content":"x"}]}`, `{"messages":[{"content":"x","role":"user"}]}`},
		{`{"a":{"y":{"q":1,"p":2},"x":3}}`, `{"a":{"x":3,"y":{"p":2,"q":1}}}`},
		{`{"s":"é😀\n\"\\/"}`, `{"s":"\u00e9\ud83d\ude00\u000a\u0022\u005c\/"}`, `{"\u0073":"\u00E9\uD83D\uDE00\n\"\\\u002f"}`},
		{`{"s":"\u0001\u001f"}`, `{"s":"\u0001\u001F"}`},
		{`{"a":1}`, `{"a":1,"model":"other","stream":true,"stream_options":{"include_usage":true}}`},
		{`{}`, ` { } `, `{"stream":false}`},
	} {
		want := asking(same[0]).Fingerprint()
		for _, in := range same[1:] {
			require.Equal(t, want, asking(in).Fingerprint(), "%s and %s are one request", same[0], in)
		}
	}
	a, b := asking(`{}`), asking(`{}`)
	a.Needs, b.Needs = []string{"x", "y"}, []string{"y", "x", "x"}
	b.Tenant, b.ID, b.Priority, b.Level, b.MaxAttempts, b.SessionID, b.JobID, b.CustomID = "u", "b", task.High, 3, 2, "s", "j", "c"
	b.Callback, b.Labels, b.TraceID = &task.Callback{URL: "http://x"}, map[string]string{"k": "v"}, "f"
	require.Equal(t, a.Fingerprint(), b.Fingerprint(), "what does not change the answer must not count")
	require.Equal(t, []string{"y", "x", "x"}, b.Needs, "the task must not change")
	b.Model, b.Progress = "smaller", &task.Progress{RequestedModel: "m"}
	require.Equal(t, a.Fingerprint(), b.Fingerprint(), "a degraded task still asks for the first model")
}

func TestOtherRequestOtherFingerprint(t *testing.T) {
	seen := map[task.Fingerprint]string{}
	add := func(name string, tk *task.Task) {
		f := tk.Fingerprint()
		require.Empty(t, seen[f], "%s has the fingerprint of %s", name, seen[f])
		require.False(t, f.IsZero())
		seen[f] = name
	}
	for _, in := range []string{
		`{}`, `{"a":1}`, `{"a":1.0}`, `{"a":"1"}`, `{"a":[1]}`, `{"a":{"b":1}}`, `{"a":[1,2]}`, `{"a":[2,1]}`, `{"a":[[1],2]}`, `{"a":[12]}`, `{"a":null}`,
		`{"a":[]}`, `{"a":{}}`, `{"a":""}`, `{"a":"\ud800"}`, `{"a":"\udfff"}`, `{"a":"\ufffd"}`, `{"a":"\\ud800"}`, `{"a":1,"b":2}`, `{"ab":12}`, `{"a":{"model":"x"}}`,
		`{"a":{"model":"y"}}`, `{"a":1,"a":2}`, `{"a":2,"a":1}`, `{"a":true}`, `{"a":"true"}`, `{"a":"x\",\"b\":\"y"}`, `{"a":"x","b":"y"}`, `{"a":"\u0000"}`, `{"a":"\\u0000"}`,
	} {
		add(in, asking(in))
	}
	for name, change := range map[string]func(*task.Task){
		"endpoint": func(x *task.Task) { x.Endpoint = task.EndpointResponses },
		"model":    func(x *task.Task) { x.Model = "n" },
		"degrade":  func(x *task.Task) { x.Degrade = true },
		"needs":    func(x *task.Task) { x.Needs = []string{"x"} },
		"needs 2":  func(x *task.Task) { x.Needs = []string{"x", "y"} },
		"needs 3":  func(x *task.Task) { x.Needs = []string{"xy"} },
		"shifted":  func(x *task.Task) { x.Endpoint, x.Model = task.EndpointChat+"m", "" },
	} {
		tk := asking(`{}`)
		change(tk)
		add(name, tk)
	}
}

// Shuffling members and escaping differently never changes a fingerprint; changing one leaf always does.
func TestFingerprintOfShuffledRequests(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		v := map[string]any{"x": randomValue(r, 4)}
		want := asking(shuffled(r, v)).Fingerprint()
		require.Equal(t, want, asking(shuffled(r, v)).Fingerprint())
		v["one more"] = 1
		require.NotEqual(t, want, asking(shuffled(r, v)).Fingerprint())
	}
}

func randomValue(r *rand.Rand, depth int) any {
	switch k := r.IntN(5); {
	case k == 0 && depth > 0:
		m := map[string]any{}
		for range r.IntN(5) {
			m[randomText(r)] = randomValue(r, depth-1)
		}
		return m
	case k == 1 && depth > 0:
		a := make([]any, r.IntN(4))
		for i := range a {
			a[i] = randomValue(r, depth-1)
		}
		return a
	case k == 2:
		return r.IntN(2) == 0
	case k == 3:
		return json.Number(strconv.Itoa(r.IntN(1000)))
	}
	return randomText(r)
}

func randomText(r *rand.Rand) string {
	chars := []rune("ab\"\\/\n\x01é😀\u2028")
	out := make([]rune, r.IntN(6))
	for i := range out {
		out[i] = chars[r.IntN(len(chars))]
	}
	return string(out)
}

// shuffled writes JSON with members in random order and characters escaped at random.
func shuffled(r *rand.Rand, v any) string {
	space := strings.Repeat(" ", r.IntN(2))
	switch v := v.(type) {
	case map[string]any:
		var parts []string
		for k, e := range v { // Go's own order is random
			parts = append(parts, escaped(r, k)+space+":"+space+shuffled(r, e))
		}
		return "{" + space + strings.Join(parts, ","+space) + "}"
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = shuffled(r, e)
		}
		return "[" + strings.Join(parts, space+",") + space + "]"
	case string:
		return escaped(r, v)
	}
	b, _ := json.Marshal(v)
	return string(b)
}

func escaped(r *rand.Rand, s string) string {
	var out bytes.Buffer
	out.WriteByte('"')
	for _, c := range s {
		switch {
		case r.IntN(3) == 0 || c < ' ':
			if c > 0xffff {
				c -= 0x10000
				out.WriteString(`\u` + strconv.FormatInt(int64(0xd800+c>>10), 16) + `\u` + strconv.FormatInt(int64(0xdc00+c&0x3ff), 16))
			} else {
				out.WriteString(`\u` + strconv.FormatInt(int64(0x10000+c), 16)[1:])
			}
		case c == '"' || c == '\\':
			out.WriteRune('\\')
			out.WriteRune(c)
		default:
			out.WriteRune(c)
		}
	}
	out.WriteByte('"')
	return out.String()
}

func FuzzFingerprint(f *testing.F) {
	f.Add([]byte(`{"b":{"d":1,"c":"\u00e9"},"a":[null,true]}`))
	f.Add([]byte(`{"a`))
	f.Fuzz(func(t *testing.T, in []byte) {
		tk := asking(string(in))
		one := tk.Fingerprint()
		require.Equal(t, one, tk.Fingerprint())
		if len(in) == 0 || in[0] != '{' || task.CheckJSON(in) != nil {
			return
		}
		var compact bytes.Buffer
		require.NoError(t, json.Compact(&compact, in))
		require.Equal(t, one, asking(compact.String()).Fingerprint(), "white space must not count")
	})
}

func BenchmarkFingerprint(b *testing.B) {
	for name, in := range map[string]string{
		"chat 1 kB":    `{"messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"` + strings.Repeat("word ", 180) + `"}],"max_tokens":100,"temperature":0.2}`,
		"chat 16 kB":   `{"messages":[{"role":"user","content":"` + strings.Repeat("line\\n", 2700) + `"}]}`,
		"worst 128 kB": strings.Repeat(`{"b":`, 127) + `{"a":"` + strings.Repeat("x", 128<<10) + `"}` + strings.Repeat(`,"a":0}`, 127),
	} {
		b.Run(name, func(b *testing.B) {
			tk := asking(in)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				tk.Fingerprint()
			}
		})
	}
}
