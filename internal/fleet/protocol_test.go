package fleet

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
}

type completion struct {
	ID, Object, Model string
	Created           int64
	Choices           []struct {
		Index   int
		Message struct{ Role, Content string }
		Text    string
		Logprob any    `json:"logprobs"`
		Finish  string `json:"finish_reason"`
	}
	Usage usage
}

func TestChat(t *testing.T) {
	f, c := start(t, Spec{ID: "a"}, Spec{ID: "b", Slots: 4})
	a, b := f.Device("a"), f.Device("b")
	ask := func(d *Device, body string) (out completion) {
		r := post(t.Context(), c, d.URL()+"/v1/chat/completions", body, "X-Request-Id", "t-1")
		require.Equalf(t, 200, r.status, "%s", r.body)
		require.Equal(t, "t-1", r.header.Get("X-Request-Id"))
		r.into(t, &out)
		out.Created = 0
		return out
	}
	one := ask(a, hello)
	require.Equal(t, one, ask(b, hello), "every device gives the same answer")
	require.Equal(t, "chat.completion", one.Object)
	require.Equal(t, "m", one.Model)
	require.Len(t, one.Choices, 1)
	require.Equal(t, "assistant", one.Choices[0].Message.Role)
	require.Equal(t, "stop", one.Choices[0].Finish)
	require.Len(t, strings.Fields(one.Choices[0].Message.Content), one.Usage.Completion)
	require.Positive(t, one.Usage.Prompt)
	require.Equal(t, one.Usage.Prompt+one.Usage.Completion, one.Usage.Total)

	short := ask(a, `{"model":"m","max_completion_tokens":3,"n":2,"messages":[{"role":"user","content":[{"type":"text","text":"hello"}]}]}`)
	require.Len(t, short.Choices, 2)
	require.Equal(t, "length", short.Choices[1].Finish)
	require.Equal(t, 1, short.Choices[1].Index)
	require.NotEqual(t, short.Choices[0].Message.Content, short.Choices[1].Message.Content)
	require.Equal(t, 6, short.Usage.Completion)
	require.NotEqual(t, one.ID, short.ID)
	require.EqualValues(t, 2, a.Stats().Succeeded)
}

func TestCompletionsBatched(t *testing.T) {
	f, c := start(t, Spec{ID: "a"})
	ask := func(prompt string) (out completion) {
		r := post(t.Context(), c, f.Device("a").URL()+"/v1/completions", `{"model":"m","prompt":`+prompt+`}`)
		require.Equalf(t, 200, r.status, "%s", r.body)
		r.into(t, &out)
		return out
	}
	batched := ask(`["one", "tw\u006f", [1, 2, 3]]`)
	require.Len(t, batched.Choices, 3)
	for i, choice := range batched.Choices {
		require.Equal(t, i, choice.Index)
	}
	// Batched or not, escaped or not: the same prompt gets the same answer.
	require.Equal(t, ask(`"one"`).Choices[0].Text, batched.Choices[0].Text)
	require.Equal(t, ask(`"two"`).Choices[0].Text, batched.Choices[1].Text)
	require.Len(t, ask(`[1, 2, 3]`).Choices, 1, "an array of token numbers is one prompt")
	require.EqualValues(t, 6, f.Device("a").Stats().Items)
}

func TestEmbeddings(t *testing.T) {
	f, c := start(t, Spec{ID: "a"})
	type answer struct {
		Object, Model string
		Data          []struct {
			Object    string
			Index     int
			Embedding json.RawMessage
		}
		Usage usage
	}
	ask := func(body string) (out answer) {
		r := post(t.Context(), c, f.Device("a").URL()+"/v1/embeddings", body)
		require.Equalf(t, 200, r.status, "%s", r.body)
		r.into(t, &out)
		return out
	}
	floats := ask(`{"model":"m","input":["one","two"],"dimensions":16}`)
	require.Len(t, floats.Data, 2)
	require.Equal(t, 2, floats.Usage.Total)
	packed := ask(`{"model":"m","input":["one","two"],"dimensions":16,"encoding_format":"base64"}`)
	for i := range floats.Data {
		var vector []float32
		require.NoError(t, json.Unmarshal(floats.Data[i].Embedding, &vector))
		require.Len(t, vector, 16)
		var text string
		require.NoError(t, json.Unmarshal(packed.Data[i].Embedding, &text))
		raw, err := base64.StdEncoding.DecodeString(text)
		require.NoError(t, err)
		require.Len(t, raw, 4*16)
		var squares float64
		for j, x := range vector {
			require.Equal(t, x, math.Float32frombits(binary.LittleEndian.Uint32(raw[4*j:])))
			squares += float64(x) * float64(x)
		}
		require.InDelta(t, 1, squares, 1e-5)
	}
	require.NotEqual(t, floats.Data[0].Embedding, floats.Data[1].Embedding)
	alone := ask(`{"model":"m","input":"one"}`)
	var vector []float32
	require.NoError(t, json.Unmarshal(alone.Data[0].Embedding, &vector))
	require.Len(t, vector, DefaultDimensions)
}

func TestResponsesAndModerations(t *testing.T) {
	f, c := start(t, Spec{ID: "a"})
	url := f.Device("a").URL()
	for _, body := range []string{`{"model":"m","input":"hi","max_output_tokens":4}`, `{"model":"m","input":[{"role":"user","content":"hi"}],"max_output_tokens":4}`} {
		var out struct {
			ID, Object, Status, Model string
			Created                   int64 `json:"created_at"`
			Error                     any
			Incomplete                struct{ Reason string } `json:"incomplete_details"`
			Output                    []struct {
				Type, ID, Status, Role string
				Content                []struct {
					Type, Text  string
					Annotations []any
				}
			}
			Usage struct {
				In    int `json:"input_tokens"`
				Out   int `json:"output_tokens"`
				Total int `json:"total_tokens"`
			}
		}
		post(t.Context(), c, url+"/v1/responses", body).into(t, &out)
		require.Equal(t, "incomplete", out.Status)
		require.Equal(t, "max_output_tokens", out.Incomplete.Reason)
		require.Len(t, strings.Fields(out.Output[0].Content[0].Text), 4)
		require.Equal(t, 4, out.Usage.Out)
	}
	var out struct {
		ID, Model string
		Results   []struct {
			Flagged    bool
			Categories map[string]bool
			Scores     map[string]float64 `json:"category_scores"`
		}
	}
	post(t.Context(), c, url+"/v1/moderations", `{"input":["a","b"]}`).into(t, &out)
	require.Len(t, out.Results, 2)
	require.Len(t, out.Results[0].Scores, len(out.Results[0].Categories))
}

func TestRejectedRequests(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Models: []string{"m", "é"}, MaxBody: 1 << 10, APIKey: "k"})
	url := f.Device("a").URL()
	many := `{"model":"m","input":[` + strings.Repeat(`"",`, 300) + `""],"dimensions":4096}`
	for name, test := range map[string]struct {
		path, body string
		status     int
		param      string
	}{
		"invalid JSON":     {"chat/completions", `{"model":`, 400, ""},
		"not an object":    {"chat/completions", `[]`, 400, ""},
		"empty":            {"chat/completions", ``, 400, ""},
		"no model":         {"chat/completions", `{"messages":[{"role":"user"}]}`, 400, "model"},
		"model a number":   {"chat/completions", `{"model":3}`, 400, "model"},
		"unknown model":    {"chat/completions", strings.Replace(hello, `"m"`, `"x"`, 1), 404, "model"},
		"no messages":      {"chat/completions", `{"model":"m"}`, 400, "messages"},
		"empty messages":   {"chat/completions", `{"model":"m","messages":[]}`, 400, "messages"},
		"no role":          {"chat/completions", `{"model":"m","messages":[{"content":"x"}]}`, 400, "messages"},
		"stream":           {"chat/completions", strings.Replace(hello, `{`, `{"stream":true,`, 1), 400, "stream"},
		"max_tokens text":  {"chat/completions", strings.Replace(hello, `{`, `{"max_tokens":"9",`, 1), 400, "max_tokens"},
		"n too large":      {"chat/completions", strings.Replace(hello, `{`, `{"n":129,`, 1), 400, "n"},
		"body too large":   {"chat/completions", strings.Repeat(" ", 1025) + hello, 413, ""},
		"mixed prompt":     {"completions", `{"model":"m","prompt":["a",1]}`, 400, "prompt"},
		"empty prompt":     {"completions", `{"model":"m","prompt":[]}`, 400, "prompt"},
		"input an object":  {"embeddings", `{"model":"m","input":{}}`, 400, "input"},
		"unknown encoding": {"embeddings", `{"model":"m","input":"x","encoding_format":"int8"}`, 400, "encoding_format"},
		"too many cells":   {"embeddings", many, 400, "dimensions"},
		"unknown path":     {"audio/speech", `{}`, 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := post(t.Context(), c, url+"/v1/"+test.path, test.body, "Authorization", "Bearer k")
			var out struct {
				Error struct {
					Message, Type string
					Param, Code   *string
				}
			}
			r.into(t, &out)
			require.Equalf(t, test.status, r.status, "%s", r.body)
			require.NotEmpty(t, out.Error.Message)
			require.NotEmpty(t, out.Error.Type)
			if test.param == "" {
				require.Nil(t, out.Error.Param)
			} else {
				require.Equal(t, test.param, *out.Error.Param)
			}
		})
	}
	require.Equal(t, 401, post(t.Context(), c, url+"/v1/chat/completions", hello).status)
	require.Equal(t, 405, get(c, url+"/v1/chat/completions").status)
	require.Equal(t, 405, post(t.Context(), c, url+"/health", "").status)
	accented := post(t.Context(), c, url+"/v1/chat/completions", strings.Replace(hello, `"m"`, `"\u00e9"`, 1), "Authorization", "Bearer k")
	require.Equal(t, 200, accented.status)
	st := f.Device("a").Stats()
	require.EqualValues(t, 1, st.Succeeded)
	require.Zero(t, st.InFlight)
	require.Equal(t, st.Requests, st.Succeeded+st.Errors)
}

func TestStatusEndpoints(t *testing.T) {
	f, c := start(t, Spec{ID: "a", Models: []string{"m", `q"`}})
	url := f.Device("a").URL()
	var models struct {
		Object string
		Data   []struct {
			ID, Object string
			Created    int64
			Owner      string `json:"owned_by"`
		}
	}
	get(c, url+"/v1/models").into(t, &models)
	require.Equal(t, []string{"m", `q"`}, []string{models.Data[0].ID, models.Data[1].ID})
	require.Equal(t, 200, get(c, url+"/health").status)
	metrics := get(c, url+"/metrics")
	require.Equal(t, 200, metrics.status)
	require.Contains(t, string(metrics.body), "\nvllm:num_requests_running{model_name=\"m\"} 0\n")
	require.Contains(t, metrics.header.Get("Content-Type"), "text/plain")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, url+"/health", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, do(c, req).status)
}
