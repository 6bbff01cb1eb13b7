package verdict

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

// Errors as engines write them, with a prompt in some, which is never repeated.
func TestEnginesErrorsAreRecognized(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		engine string
		status int
		tasks  int
		body   string
		want   Kind
	}{
		{"vLLM", 400, 1, `{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the completion). Please reduce the length of the messages or completion.","type":"BadRequestError","param":null,"code":400}`, TooLong},
		{"vLLM", 400, 1, `{"error":{"message":"The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that max_model_len is no smaller than the number of text tokens.","type":"BadRequestError","param":null,"code":400}}`, TooLong},
		{"vLLM", 400, 1, `{"error":{"message":"'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens and your request has 12 input tokens (5000 > 4096 - 12).","type":"BadRequestError"}}`, TooLong},
		{"SGLang", 400, 1, `{"object":"error","message":"The input (5000 tokens) is longer than the model's context length (4096 tokens).","type":"BadRequestError","code":400}`, TooLong},
		{"SGLang", 400, 1, `{"object":"error","message":"Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input or enable --allow-auto-truncate.","type":"BadRequestError"}`, TooLong},
		{"llama.cpp", 400, 1, `{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9100,"n_ctx":4096}}`, TooLong},
		{"llama.cpp", 500, 1, `{"error":{"code":500,"message":"the request exceeds the available context size. try increasing the context size or enable context shift","type":"server_error"}}`, TooLong},
		{"llama.cpp", 500, 1, `{"error":{"code":500,"message":"input is too large to process. increase the physical batch size","type":"server_error"}}`, TooLong},
		{"TGI", 422, 1, "{\"error\":\"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1500 `inputs` tokens and 1000 `max_new_tokens`\",\"error_type\":\"validation\"}", TooLong},
		{"TEI", 413, 8, "{\"error\":\"Input validation error: `inputs` must have less than 512 tokens. Given: 600\",\"error_type\":\"Validation\"}", TooLong},
		{"Ollama", 400, 1, `{"error":{"message":"the input length exceeds the context length","type":"api_error","param":null,"code":null}}`, TooLong},
		{"Ollama", 500, 1, `{"error":{"message":"input length exceeds maximum context length","type":"api_error"}}`, TooLong},
		{"LiteLLM", 400, 1, `{"error":{"message":"litellm.ContextWindowExceededError: …","type":null,"param":null,"code":"400"}}`, TooLong},
		{"OpenAI", 400, 1, `{"error":{"message":"…","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`, TooLong},
		{"TEI", 413, 64, `{"error":"batch size 64 > maximum allowed batch size 32","error_type":"Validation"}`, BatchTooLarge},
		{"TEI", 422, 64, `{"error":"batch size 64 > maximum allowed batch size 32","error_type":"Validation"}`, BatchTooLarge},
		{"nginx", 413, 1, `<html><head><title>413 Request Entity Too Large</title></head></html>`, BodyTooLarge},
		{"nginx", 413, 2, `<html><head><title>413 Request Entity Too Large</title></head></html>`, BatchTooLarge},
		{"vLLM", 404, 1, "{\"error\":{\"message\":\"The model `m` does not exist.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}", NoModel},
		{"Ollama", 404, 1, `{"error":{"message":"model 'm' not found","type":"api_error","param":null,"code":null}}`, NoModel},
		{"LiteLLM", 400, 1, `{"error":{"message":"/chat/completions: Invalid model name passed in model=m. Call /v1/models to view available models for your key.","type":"invalid_request_error","param":null,"code":"400"}}`, NoModel},
		{"Go", 404, 1, `404 page not found`, NoEndpoint},
		{"FastAPI", 404, 1, `{"detail":"Not Found"}`, NoEndpoint},
		{"FastAPI", 422, 1, `{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required","input":{}}]}`, Invalid},
		{"llama.cpp", 503, 1, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`, Loading},
		{"nginx", 503, 1, `<html><head><title>503 Service Temporarily Unavailable</title></head></html>`, Unavailable},
		{"vLLM", 500, 1, `{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","code":500}}`, ServerError},
		{"llama.cpp", 401, 1, `{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}`, Auth},
		{"llama.cpp", 501, 1, "{\"error\":{\"code\":501,\"message\":\"This server does not support embeddings. Start it with `--embeddings`\",\"type\":\"not_supported_error\"}}", NoEndpoint},
		{"llama.cpp", 404, 1, `{"error":{"message":"File Not Found","type":"not_found_error","code":404}}`, NoEndpoint},
		{"llama.cpp", 400, 1, `{"error":{"code":400,"message":"request (2031 tokens) exceeds the available context size (512 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":2031,"n_ctx":512}}`, TooLong},
		{"llama.cpp", 500, 1, `{"error":{"code":500,"message":"input (1001 tokens) is too large to process. increase the physical batch size (current batch size: 512)","type":"server_error"}}`, TooLong},
		{"llama.cpp", 400, 1, `{"error":{"code":400,"message":"Expected 'messages' to be an array","type":"invalid_request_error"}}`, Invalid},
		{"LiteLLM", 400, 1, `{"error":{"message":"No connected db.","type":"no_db_connection","param":null,"code":"400"}}`, Auth},
		{"LiteLLM", 401, 1, `{"error":{"message":"Authentication Error, Invalid proxy server token passed.","type":"auth_error","param":"None","code":"401"}}`, Auth},
		{"LiteLLM", 400, 1, `{"error":{"message":"{'error': '/chat/completions: Invalid model name passed in model=other. Call ` + "`/v1/models`" + ` to view available models for your key.'}","type":"None","param":"None","code":"400"}}`, NoModel},
		{"LiteLLM", 400, 1, `{"error":{"message":"litellm.BadRequestError: OpenAIException - request (2031 tokens) exceeds the available context size (512 tokens), try increasing it. Received Model Group=m","type":null,"param":null,"code":"400"}}`, TooLong},
		{"LiteLLM", 500, 1, `{"error":{"message":"litellm.InternalServerError: InternalServerError: OpenAIException - Error code: 500 - input (1001 tokens) is too large to process. increase the physical batch size (current batch size: 512). Received Model Group=m","type":null,"param":null,"code":"500"}}`, TooLong},
		{"LiteLLM", 501, 1, `{"error":{"message":"litellm.APIError: APIError: OpenAIException - Error code: 501 - This server does not support embeddings.","type":null,"param":null,"code":"501"}}`, NoEndpoint},
		{"LiteLLM", 500, 1, `{"error":{"message":"litellm.InternalServerError: InternalServerError: OpenAIException - Connection error.. Received Model Group=m\nAvailable Model Group Fallbacks=None","type":null,"param":null,"code":"500"}}`, BadGateway},
		{"LiteLLM", 500, 1, `{"error":{"message":"litellm.APIConnectionError: APIConnectionError: OpenAIException - 'str' object has no attribute 'get'. Received Model Group=m","type":null,"param":null,"code":"500"}}`, ServerError},
		{"TGI", 424, 1, `{"error":"Request failed during generation: Server error: CUDA out of memory","error_type":"generation"}`, GenerationFailed},
	} {
		r := Reply{Device: "d", Endpoint: task.EndpointChat, Tasks: c.tasks, Status: c.status, Header: http.Header{}, Body: []byte(c.body), Limit: 1 << 20}
		f := r.Judge(time.Now())
		require.NotNil(t, f, c.body)
		require.Equal(t, c.want, f.Kind, "%s: %s", c.engine, c.body)
		require.Equal(t, c.status, f.Status)
	}
}

// What a device says of its context is learned.
func TestHowLongAPromptMayBe(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]int{
		`{"error":{"code":400,"message":"request (4015 tokens) exceeds the available context size (2048 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":4015,"n_ctx":2048}}`:           2048,
		`{"error":{"message":"litellm.ContextWindowExceededError: litellm.BadRequestError: OpenAIException - request (4015 tokens) exceeds the available context size (2048 tokens), try increasing it","code":"400"}}`: 2048,
		`{"error":{"message":"This model's maximum context length is 4096 tokens. However, you requested 9100 tokens.","type":"BadRequestError","code":400}}`:                                                           4096,
		`{"object":"error","message":"The decoder prompt (length 9100) is longer than the maximum model length of 512. Make sure","code":400}`:                                                                          512,
		`{"object":"error","message":"The input (9100 tokens) is longer than the model's context length (8192 tokens).","type":"BadRequestError","code":400}`:                                                           8192,
		"{\"error\":\"Input validation error: `inputs` must have less than 512 tokens. Given: 600\",\"error_type\":\"validation\"}":                                                                                     512,
		"{\"error\":\"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1 `inputs` tokens and 4000 `max_new_tokens`\",\"error_type\":\"validation\"}":                                  2048,
		`{"error":"the input length exceeds the context length"}`:                                                                        0,
		`{"error":{"type":"exceed_context_size_error","n_ctx":"many","message":"available context size (99999999999999999999 tokens)"}}`: 0,
	} {
		f := (&Reply{Device: "d", Endpoint: task.EndpointChat, Tasks: 1, Status: 400, Header: http.Header{}, Body: []byte(body), Limit: 1 << 20}).Judge(time.Now())
		require.NotNil(t, f)
		require.Equal(t, TooLong, f.Kind, body)
		require.Equal(t, want, f.Context, body)
	}
}

// An answer without an answer in it is no success, and every other is one.
func TestAnswersHaveSomethingInThem(t *testing.T) {
	t.Parallel()
	chat, comp, emb, resp, mod := task.EndpointChat, task.EndpointCompletions, task.EndpointEmbeddings, task.EndpointResponses, task.EndpointModerations
	for _, c := range []struct {
		endpoint, body string
		want           Kind
	}{
		{chat, `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"abort"}],"usage":{"completion_tokens":0}}`, Aborted},
		{chat, `{"choices":[{"finish_reason":"stop"},{"finish_reason":"abort"}]}`, Aborted},
		{chat, `{"error":{"message":"worker limit reached","code":502}}`, ErrorObject},
		{chat, `{"error":"it broke","choices":[{}]}`, ErrorObject},
		{chat, `{"error":{"message":"The model m does not exist","type":"NotFoundError"}}`, NoModel},
		{chat, `{"error":{"message":"This model's maximum context length is 10 tokens"}}`, TooLong},
		{chat, `{"choices":[]}`, NoAnswer}, {chat, `{"choices":null}`, NoAnswer}, {chat, `{"choices":"x"}`, NoAnswer}, {chat, `{}`, NoAnswer},
		{chat, `null`, NoAnswer}, {chat, `[]`, NoAnswer}, {chat, `"ok"`, NoAnswer}, {chat, `1`, NoAnswer},
		{chat, ``, BrokenJSON}, {chat, `{"choices":[{}]`, BrokenJSON}, {chat, `<html>`, BrokenJSON},
		{comp, `{"choices":[]}`, NoAnswer}, {emb, `{"data":[]}`, NoAnswer}, {mod, `{"results":[]}`, NoAnswer}, {resp, `{"status":"completed","output":[]}`, NoAnswer},
		{resp, `{"id":"r","status":"queued","output":[]}`, Unfinished}, {resp, `{"status":"in_progress","output":[]}`, Unfinished},
		{resp, `{"status":"failed","error":{"code":"server_error","message":"…"},"output":[]}`, Unsuccess}, {resp, `{"status":"cancelled","output":[]}`, Unsuccess},

		{chat, ` {"choices":[{"index":0,"message":{"content":""},"finish_reason":"stop"}],"error":null} `, ""},
		{chat, `{"choices":[{"finish_reason":"length"}]}`, ""}, {chat, `{"choices":[{"finish_reason":"tool_calls"}]}`, ""},
		{chat, `{"choices":[{"finish_reason":"content_filter"}],"error":{}}`, ""}, {chat, `{"choices":[{"finish_reason":null}]}`, ""},
		{chat, `{"choices":[{"message":{"finish_reason":"abort"}}]}`, ""},
		{emb, `{"data":[{"embedding":[1]}]}`, ""}, {mod, `{"results":[{}]}`, ""}, {comp, `{"choices":[{"text":""}]}`, ""},
		{resp, `{"status":"completed","error":null,"output":[{}]}`, ""}, {resp, `{"output":[{}]}`, ""},
		{resp, `{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[]}`, ""},
	} {
		r := Reply{Device: "d", Endpoint: c.endpoint, Tasks: 1, Status: 200, Body: []byte(c.body), Limit: 1 << 20}
		f := r.Judge(time.Now())
		if c.want == "" {
			require.Nil(t, f, c.body)
			continue
		}
		require.NotNil(t, f, c.body)
		require.Equal(t, c.want, f.Kind, c.body)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "0.5": 500 * time.Millisecond, "-1": 0, "soon": 0, "NaN": 0, "1e300": 0, "Inf": 0, "999999": MaxPause,
		"Sat, 31 Jan 2026 12:00:09 GMT": 9 * time.Second, "Sat, 31 Jan 2026 11:00:00 GMT": 0, "Sat, 31 Jan 2037 11:00:00 GMT": MaxPause,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {v}}, now), v)
	}
	require.Equal(t, 250*time.Millisecond, retryAfter(http.Header{"Retry-After-Ms": {"250"}, "Retry-After": {"9"}}, now))
	sent := http.Header{"Retry-After": {"Sat, 31 Jan 2026 12:00:09 GMT"}, "Date": {"Sat, 31 Jan 2026 12:00:02 GMT"}}
	require.Equal(t, 7*time.Second, retryAfter(sent, now), "by the device's clock")
}

// What a device says may be a prompt: only words that look like names are repeated.
func TestMessagesRepeatNoPrompts(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"error":{"message":"SECRET","type":"it is SECRET","code":"so SECRET","param":"SECRET text"}}`,
		`SECRET`, `{"error":"SECRET","error_type":"a SECRET"}`, `{"detail":"SECRET"}`, `{"message":"SECRET"}`,
		`{"error":{"type":"` + strings.Repeat("x", 199) + `é"}}`, `{"choices":[],"SECRET":1}`,
	} {
		for _, status := range []int{200, 301, 400, 401, 404, 413, 424, 429, 500, 503} {
			f := (&Reply{Device: "d", Endpoint: task.EndpointChat, Tasks: 1, Status: status, Header: http.Header{}, Body: []byte(body), Limit: 1 << 20}).Judge(time.Now())
			require.NotNil(t, f)
			require.NotContains(t, f.Message, "SECRET")
			require.True(t, utf8.ValidString(f.Message))
			require.LessOrEqual(t, len(f.Message), 300)
			require.NotContains(t, f.Message, "{")
		}
	}
	long := Broken("d", 0, Progress{}, fmt.Errorf("dialling: %w", errors.New(strings.Repeat("\xff", 1<<20))))
	require.LessOrEqual(t, len(long.Message), maxMessage)
}

func TestWhatErrorsSay(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"error":{"message":"your prompt: SECRET","type":"invalid_request_error","code":"bad","param":"input"}}`: "invalid_request_error, bad, at input",
		`SECRET`:                               "the request is invalid",
		`{"error":{"type":"you said SECRET"}}`: "the request is invalid",
		`{"error":{"type":"bad_request","code":"my SECRET","param":"messages[0].content"}}`: "bad_request, at messages[0].content",
	} {
		require.Equal(t, want, errorOf([]byte(body)).text())
	}
}

func FuzzJudge(f *testing.F) {
	f.Add(200, []byte(`{"choices":[{"finish_reason":"abort"}]}`))
	f.Add(400, []byte(`{"error":{"message":[1],"type":{},"code":7}}`))
	f.Add(500, []byte(`{"error":"\ud800"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := Reply{Device: "d", Endpoint: task.EndpointChat, Tasks: 1, Status: min(max(status, 200), 999), Header: http.Header{}, Body: body, Limit: 1 << 20}
		var failure *Failure
		fuzzing.Bound(t, len(body), func() { failure = r.Judge(time.Time{}) })
		if failure == nil {
			require.True(t, r.Status < 300 && task.CheckJSON(body) == nil)
			return
		}
		require.NotNil(t, failure.Row())
		require.LessOrEqual(t, len(failure.Message), maxMessage)
		require.True(t, utf8.ValidString(failure.Message))
	})
}

var update = flag.Bool("update", false, "write the table into docs/failures.md")

const (
	page  = "../../docs/failures.md"
	begin = "<!-- table:begin -->\n"
	end   = "<!-- table:end -->"
)

// The page shows the table of the code.
func TestTheTableIsDocumented(t *testing.T) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), begin)
	require.True(t, ok)
	table, after, ok := strings.Cut(rest, end)
	require.True(t, ok)
	want := markdown()
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(before+begin+want+end+after), 0o644))
		return
	}
	require.Equal(t, want, table, "docs/failures.md is not what the code says; run: go test ./workers/verdict -run TestTheTableIsDocumented -update")
}

func markdown() string {
	var b strings.Builder
	b.WriteString("| kind | what happens | fault | next | attempt | the breaker counts | class | what users read |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range Table {
		attempt, class := "no", "–"
		if r.Attempt == UsesAttempt {
			attempt = "yes"
		}
		if r.Class != task.ClassNone {
			class = "`" + string(r.Class) + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", r.Kind, r.Seen, r.Fault, r.Next, attempt, r.Counts, class, r.Reads)
	}
	return b.String()
}

func TestTheTableIsConsistent(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, r := range Table {
		require.False(t, seen[r.Kind], r.Kind)
		seen[r.Kind] = true
		require.NotEmpty(t, r.Reads)
		if r.Fault == OfPair || r.Fault == OfNeither {
			require.Equal(t, UsesNone, r.Attempt, r.Kind)
			require.NotContains(t, []Counts{CountsFault, CountsFirst, CountsTimeout, CountsSuspect}, r.Counts, r.Kind)
		}
		require.False(t, r.LetGo > 0 && r.Fault != OfPair && r.Fault != OfTask, r.Kind)
	}
	require.Panics(t, func() { Kind("none").Row() })
}
