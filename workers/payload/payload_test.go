package payload

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

func taskOf(id, endpoint, input string) *task.Task {
	return &task.Task{ID: id, Tenant: "t", Endpoint: endpoint, Model: "m", Input: task.Input(input)}
}

func TestBody(t *testing.T) {
	tk := &task.Task{Model: "m", Input: task.Input(`{"model":"m", "messages":[]}`)}
	b, err := Body(tk, "")
	require.NoError(t, err)
	require.Equal(t, string(tk.Input), string(b), "an input that needs no change is sent unchanged")
	for in, want := range map[string]string{
		`{"messages":[]}`:                                                     `{"messages":[],"model":"m"}`,
		`{"model":"other","n":1.50}`:                                          `{"model":"m","n":1.50}`,
		`{"model":"m","stream":true}`:                                         `{"model":"m"}`,
		`{"model":"m","stream":false,"a":{"stream":1}}`:                       `{"model":"m","a":{"stream":1}}`,
		`{"model":"m","stream":true,"stream_options":{"include_usage":true}}`: `{"model":"m"}`,
		`{"model":7}`: `{"model":"m"}`,
		`{"model":"other","seed":12345678901234567890}`: `{"model":"m","seed":12345678901234567890}`,
	} {
		tk.Input = task.Input(in)
		b, err := Body(tk, "")
		require.NoError(t, err)
		require.Equal(t, canonical(t, want), canonical(t, string(b)))
	}
	tk.Input = task.Input(`[1]`)
	_, err = Body(tk, "")
	require.ErrorContains(t, err, "not a JSON object")
}

// canonical sorts members and keeps numbers as they are written.
func canonical(t require.TestingT, s string) string {
	var m map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(s), &m))
	b, err := json.Marshal(m)
	require.NoError(t, err)
	return string(b)
}

// answerOf plays a device whose answers are a function of the item.
func answerOf(t require.TestingT, endpoint string, body []byte) []byte {
	var req struct {
		Input, Prompt json.RawMessage
		N             int
	}
	require.NoError(t, json.Unmarshal(body, &req))
	raw, name, n := req.Input, "data", 1
	if endpoint == task.EndpointCompletions {
		raw, name, n = req.Prompt, "choices", max(1, req.N)
	}
	items := itemsOf(raw, 1<<20)
	var entries []map[string]any
	for _, it := range items {
		for k := range n {
			entries = append(entries, map[string]any{"index": len(entries), "text": fmt.Sprintf("%s#%d", it, k)})
		}
	}
	for i := range entries { // in any order
		j := (i*7 + 3) % len(entries)
		entries[i], entries[j] = entries[j], entries[i]
	}
	b, err := json.Marshal(map[string]any{"object": "list", name: entries, "id": "x", "usage": map[string]any{
		"prompt_tokens": 10*len(items) + 3, "total_tokens": 100*len(items) + 7, "details": map[string]int{"a": 1}, "cost": 0.5}})
	require.NoError(t, err)
	return b
}

// A task gets the same answer from a batched request as from one of its own, and the token counts of
// all tasks add up to the device's.
func TestSplitReversesGrouping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		endpoint := rapid.SampledFrom([]string{task.EndpointEmbeddings, task.EndpointCompletions}).Draw(t, "endpoint")
		member := listMember(endpoint)
		inputs := []string{`"a"`, `"b c"`, `["d"]`, `["e","f"]`, `[1,2,3]`, `[[4,5],[6]]`, `""`, `["ü\n"]`, `[]`, `7`, `null`, ` [ "g" , "h" ] `, `["1","2","3","4","5"]`}
		var tasks []*task.Task
		for i := range rapid.IntRange(1, 12).Draw(t, "tasks") {
			in := fmt.Sprintf(`{"model":"x","%s":%s`, member, rapid.SampledFrom(inputs).Draw(t, "input"))
			if endpoint == task.EndpointCompletions {
				in += rapid.SampledFrom([]string{``, `,"n":1`, `,"n":2`, `,"n":"many"`, `,"n":0`}).Draw(t, "n")
			}
			in += rapid.SampledFrom([]string{``, `,"temperature":0.5`, `, "temperature" : 0.5`, `,"stream":true`}).Draw(t, "other")
			tasks = append(tasks, taskOf(fmt.Sprint(i), endpoint, in+"}"))
		}
		most := rapid.IntRange(1, 6).Draw(t, "most")
		groups, singles := Groups(endpoint, "", tasks, most)
		seen := map[int]int{}
		for _, w := range singles {
			seen[w]++
		}
		for _, g := range groups {
			batched, err := g.Body(endpoint)
			require.NoError(t, err)
			require.LessOrEqual(t, g.Items, most)
			answer := answerOf(t, endpoint, batched)
			shares, err := g.Split(endpoint, answer)
			require.NoError(t, err)
			require.Len(t, shares, len(g.Tasks()))
			sums := map[string]int64{}
			for i, at := range g.Tasks() {
				seen[at]++
				one, err := bodyMembers(tasks[at], "")
				require.NoError(t, err)
				req, err := json.Marshal(one)
				require.NoError(t, err)
				sameAnswer(t, answerOf(t, endpoint, req), shares[i])
				var u struct{ Usage map[string]int64 }
				require.NoError(t, json.Unmarshal(shares[i], &u))
				for k, v := range u.Usage {
					require.GreaterOrEqual(t, v, int64(0))
					sums[k] += v
				}
			}
			require.Equal(t, map[string]int64{"prompt_tokens": int64(10*g.Items + 3), "total_tokens": int64(100*g.Items + 7)}, sums)
			// An answer that leaves something out is an error.
			var cut map[string]json.RawMessage
			require.NoError(t, json.Unmarshal(answer, &cut))
			for _, name := range []string{"data", "choices"} {
				var list []json.RawMessage
				if json.Unmarshal(cut[name], &list) == nil && len(list) > 0 {
					cut[name], _ = json.Marshal(list[1:])
				}
			}
			short, err := json.Marshal(cut)
			require.NoError(t, err)
			_, err = g.Split(endpoint, short)
			require.Error(t, err)
		}
		for at := range tasks {
			require.Equal(t, 1, seen[at], "a task is in one request")
		}
	})
}

func sameAnswer(t require.TestingT, want, got []byte) {
	texts := func(b []byte) map[int]string {
		var a struct {
			Data, Choices []struct {
				Index int
				Text  string
			}
		}
		require.NoError(t, json.Unmarshal(b, &a))
		out := map[int]string{}
		for _, e := range append(a.Data, a.Choices...) {
			require.NotContains(t, out, e.Index)
			out[e.Index] = e.Text
		}
		return out
	}
	require.Equal(t, texts(want), texts(got))
}

func TestGrouping(t *testing.T) {
	e := task.EndpointEmbeddings
	tasks := []*task.Task{
		taskOf("a", e, `{"input":"a"}`), taskOf("tokens", e, `{"input":[1,2]}`), taskOf("b", e, `{"input":["b","c"],"model":"whatever"}`),
		taskOf("bad", e, `{"input":{}}`), taskOf("none", e, `{}`), taskOf("dims", e, `{"input":"d","dimensions":8}`),
	}
	groups, singles := Groups(e, "", tasks, 100)
	var grouped [][]string
	for _, g := range groups {
		var ids []string
		for _, at := range g.Tasks() {
			ids = append(ids, tasks[at].ID)
		}
		grouped = append(grouped, ids)
	}
	require.Equal(t, [][]string{{"a", "b"}, {"tokens"}, {"dims"}}, grouped, "texts, tokens, and requests with other members are apart")
	require.Len(t, singles, 2)
	batched, err := groups[0].Body(e)
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"m","input":["a","b","c"]}`, string(batched))
}

func TestInvalidBatchedAnswers(t *testing.T) {
	e := task.EndpointEmbeddings
	groups, _ := Groups(e, "", []*task.Task{taskOf("a", e, `{"input":"a"}`), taskOf("b", e, `{"input":"b"}`)}, 100)
	for _, answer := range []string{
		``, `[]`, `null`, `{}`, `{"data":{}}`, `{"data":[]}`, `{"data":[{"index":0}]}`, `{"data":[{"index":0},{"index":0}]}`,
		`{"data":[{"index":0},{"index":2}]}`, `{"data":[{"index":-1},{"index":0}]}`, `{"data":[{},{}]}`, `{"data":[null,null]}`, `{"data":[{"index":"0"},{"index":1}]}`,
	} {
		_, err := groups[0].Split(e, []byte(answer))
		require.Error(t, err, answer)
	}
	for _, answer := range []string{`{"data":[{"index":1},{"index":0}]}`, `{"data":[{"index":1},{"index":0}],"usage":null}`, `{"data":[{"index":1},{"index":0}],"usage":"much"}`} {
		shares, err := groups[0].Split(e, []byte(answer))
		require.NoError(t, err, answer)
		require.Equal(t, task.Usage{}, UsageOf(shares[0]))
	}
}

func FuzzSplit(f *testing.F) {
	e := task.EndpointCompletions
	f.Add([]byte(`{"choices":[{"index":1},{"index":0},{"index":2},{"index":3}],"usage":{"prompt_tokens":9223372036854775807}}`))
	f.Add([]byte(`{"choices":[{},{},{},{}],"x":{"y":[[1]]},"usage":{"a":{}}}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		fuzzing.Bound(t, len(answer), func() { UsageOf(answer) })
		if task.CheckJSON(answer) != nil { // the engine refuses it
			return
		}
		groups, _ := Groups(e, "", []*task.Task{taskOf("a", e, `{"prompt":"a","n":2}`), taskOf("b", e, `{"prompt":"bb","n":2}`)}, 100)
		var shares [][]byte
		var err error
		fuzzing.Bound(t, len(answer), func() { shares, err = groups[0].Split(e, answer) })
		if err != nil {
			return
		}
		require.Len(t, shares, 2)
		for _, s := range shares {
			require.Truef(t, json.Valid(s), "%s", s)
		}
	})
}

// A task's input may be anything.
func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"model":"m","input":["a","b"],"stream":true}`))
	f.Add([]byte(`{"\u006dodel":"m","model":1,"prompt":[1,2,3],"n":2,"n":3}`))
	f.Add([]byte(`{"prompt":[[1],[2]],"a":{"model":"x"}}`))
	f.Fuzz(func(t *testing.T, input []byte) {
		one := taskOf("a", task.EndpointEmbeddings, string(input))
		one.Normalize(time.Unix(1, 0))
		if one.Validate(task.Limits{}) != nil {
			return
		}
		var b []byte
		var err error
		fuzzing.Bound(t, len(input), func() { b, err = Body(one, "") })
		require.NoError(t, err)
		var sent, had map[string]json.RawMessage
		require.NoErrorf(t, json.Unmarshal(b, &sent), "%s", b)
		require.NoError(t, json.Unmarshal(input, &had))
		require.Equal(t, `"m"`, strings.TrimSpace(string(sent["model"])))
		require.NotContains(t, sent, "stream")
		require.NotContains(t, sent, "stream_options")
		for k, v := range had {
			if k != "model" && k != "stream" && k != "stream_options" {
				require.Equal(t, string(v), string(sent[k]), k)
			}
		}
		for _, e := range []string{task.EndpointEmbeddings, task.EndpointCompletions} {
			one := taskOf("a", e, string(input))
			fuzzing.Bound(t, len(input), func() { Groups(e, "", []*task.Task{one}, 16) })
			groups, _ := Groups(e, "", []*task.Task{one, one}, 16)
			for _, g := range groups {
				b, err := g.Body(e)
				require.NoError(t, err)
				require.Truef(t, json.Valid(b), "%s", b)
			}
		}
	})
}

func TestUsage(t *testing.T) {
	require.Equal(t, task.Usage{InputTokens: 3, OutputTokens: 4}, UsageOf([]byte(`{"usage":{"prompt_tokens":3,"completion_tokens":4}}`)))
	require.Equal(t, task.Usage{InputTokens: 3, OutputTokens: 4}, UsageOf([]byte(`{"usage":{"input_tokens":3,"output_tokens":4}}`)))
	require.Equal(t, task.Usage{}, UsageOf([]byte(`{"usage":{"prompt_tokens":-3}}`)))
}
