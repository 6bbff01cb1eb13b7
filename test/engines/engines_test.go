package engines

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/test/harness"
)

// stack is Batchyard with real engines as devices.
type stack struct {
	t                 *testing.T
	in                *harness.Installation
	api               *harness.API
	chat, embed, lite *server
	large             *server // with one slot, and a context for answers that take long
}

// newStack starts the engines, and `batchyard dev` with them.
func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t}
	s.chat = startLlama(t, "smollm2", "sesame")
	// With one slot, as this version of llama.cpp answers otherwise when it embeds several texts of such a model at a time.
	s.embed = startLlama(t, "smollm2-embed", "", "--embeddings", "--pooling", "mean", "--parallel", "1", "--ctx-size", strconv.Itoa(length))
	s.large = startLlama(t, "smollm2-large", "", "--parallel", "1", "--ctx-size", "8192")
	s.lite = startLiteLLM(t, "sk-open", map[string]*server{"chat": s.chat, "embed": s.embed, "large": s.large})
	wrong := *s.chat
	wrong.name, wrong.key = "locked-out", "wrong"
	stranger := *s.lite
	stranger.name, stranger.key = "stranger", "sk-wrong"
	s.in = harness.Local(t, nil)
	p := s.in.Dev(t, "--listen", "127.0.0.1:0",
		"--device", s.chat.device(t, ",alias=gpt-4o-mini=smollm2"), "--device", s.embed.device(t, ""), "--device", s.large.device(t, ""),
		"--device", s.lite.device(t, ""),
		"--device", wrong.device(t, ",model=locked"), "--device", stranger.device(t, ",model=strange"))
	s.api = p.API()
	return s
}

func (s *stack) device(t *testing.T, id string) api.DeviceStatus {
	t.Helper()
	var list api.DeviceList
	s.api.Get(t, "/v1/devices", &list)
	for _, d := range list.Devices {
		if d.ID == id {
			return d
		}
	}
	require.FailNow(t, "there is no device "+id)
	return api.DeviceStatus{}
}

// run runs tasks, and returns how each ended.
func (s *stack) run(t *testing.T, tasks ...*task.Task) map[string]api.Status {
	t.Helper()
	ids := s.api.Submit(t, tasks...)
	s.in.Await(t, ids, within)
	out := map[string]api.Status{}
	for _, id := range ids {
		out[id] = s.api.Status(t, id)
	}
	return out
}

// succeed runs tasks that all should succeed.
func (s *stack) succeed(t *testing.T, tasks ...*task.Task) map[string]api.Status {
	t.Helper()
	out := s.run(t, tasks...)
	for id, st := range out {
		require.Equal(t, task.Success, st.State, "%s: %+v %+v %s", id, st.Error, st.Attempts, st.Output)
	}
	return out
}

func newTask(id, model, endpoint, input string, args ...any) *task.Task {
	return &task.Task{ID: id, Model: model, Endpoint: endpoint, Input: task.Input(fmt.Sprintf(input, args...))}
}

func chatTask(id, model string, tokens int) *task.Task {
	return newTask(id, model, task.EndpointChat, `{"messages":[{"role":"user","content":"Say %s."}],"max_tokens":%d}`, id, tokens)
}

// answer is what the endpoints' answers have in common.
type answer struct {
	Choices []struct {
		Text    string
		Message struct{ Content string }
	}
	Data   []struct{ Embedding []float64 }
	Output []struct{ Content []struct{ Text string } }
	Usage  struct {
		Prompt int `json:"prompt_tokens"`
	}
}

func read(t *testing.T, raw []byte) (a answer) {
	t.Helper()
	require.NoError(t, json.Unmarshal(raw, &a), "%s", raw)
	return a
}

// long is a prompt that does not fit.
var long = strings.Repeat("word ", 4*length)

func TestRealEngines(t *testing.T) {
	s := newStack(t)
	t.Run("what devices say", s.says)
	t.Run("chat", s.chats)
	t.Run("completions", s.completes)
	t.Run("embeddings", s.embeds)
	t.Run("responses", s.responds)
	t.Run("long prompts", s.refuses)
	t.Run("invalid requests", s.rejects)
	t.Run("cancellation", s.cancels)
	t.Run("restart", s.restarts)
}

// says looks at the list of devices.
func (s *stack) says(t *testing.T) {
	harness.Eventually(t, patience, "the devices report themselves", func() bool {
		var list api.DeviceList
		s.api.Get(t, "/v1/devices", &list)
		return len(list.Devices) == 6 && !slices.ContainsFunc(list.Devices, func(d api.DeviceStatus) bool { return d.State == "unserved" })
	})
	for _, id := range []string{"smollm2", "smollm2-embed", "litellm"} {
		d := s.device(t, id)
		require.Equal(t, "up", d.State, "%s: %s", id, d.Reason)
		require.Equal(t, slots, d.AtOnce)
	}
	require.Equal(t, map[string]int{"smollm2": length}, s.device(t, "smollm2").Context)
	require.NotNil(t, s.device(t, "smollm2").InFlight, "from its metrics, which need the key")
	require.ElementsMatch(t, []string{"proxied-chat", "proxied-embed", "proxied-large"}, s.device(t, "litellm").Models)
	d := s.device(t, "locked-out") // llama.cpp's health needs no key
	require.Equal(t, "down", d.State)
	require.Contains(t, d.Problem, "key")
	require.Zero(t, s.embed.metric(t, "prompt_tokens_total"), "LiteLLM's /health would have asked it")
}

func (s *stack) chats(t *testing.T) {
	var tasks []*task.Task
	for i := range 8 {
		model := []string{"smollm2", "gpt-4o-mini", "proxied-chat"}[i%3]
		tasks = append(tasks, chatTask(fmt.Sprint("chat-", i), model, 8))
	}
	for id, st := range s.succeed(t, tasks...) {
		require.NotEmpty(t, read(t, st.Output).Choices[0].Message.Content, id)
		require.Len(t, st.Attempts, 1)
	}
}

func (s *stack) completes(t *testing.T) {
	var tasks []*task.Task
	for i := range 12 {
		model := []string{"smollm2", "proxied-chat"}[i%2]
		tasks = append(tasks, newTask(fmt.Sprint("complete-", i), model, task.EndpointCompletions, `{"prompt":"The number after %d is","max_tokens":4}`, i))
	}
	for id, st := range s.succeed(t, tasks...) {
		require.Len(t, read(t, st.Output).Choices, 1, id)
		require.NotEmpty(t, read(t, st.Output).Choices[0].Text, id)
	}
}

func (s *stack) embeds(t *testing.T) {
	var tasks []*task.Task
	words := []string{"rain", "Paris", "steel", "seven", "cat", "to sing", "blue", "@"}
	text := func(i int) string { return strings.Repeat(words[i%8]+" ", 1+i/8) }
	for i := range 16 {
		model := []string{"smollm2-embed", "proxied-embed"}[i%2]
		tasks = append(tasks, newTask(fmt.Sprint("embed-", i), model, task.EndpointEmbeddings, `{"input":%q}`, text(i)))
	}
	out := s.succeed(t, tasks...)
	for i := range 16 {
		_, raw, err := s.embed.ask(t.Context(), http.MethodPost, task.EndpointEmbeddings, fmt.Sprintf(`{"input":%q}`, text(i)))
		require.NoError(t, err)
		want, got := read(t, []byte(raw)).Data, read(t, out[fmt.Sprint("embed-", i)].Output).Data
		require.Len(t, got, 1)
		require.Greater(t, cosine(want[0].Embedding, got[0].Embedding), 0.9999, "each gets its own")
	}
}

func cosine(a, b []float64) float64 {
	var dot, aa, bb float64
	for i := range a {
		dot, aa, bb = dot+a[i]*b[i], aa+a[i]*a[i], bb+b[i]*b[i]
	}
	return dot / math.Sqrt(aa*bb)
}

func (s *stack) responds(t *testing.T) {
	st := s.succeed(t, newTask("respond", "smollm2", task.EndpointResponses, `{"input":"Say hello.","max_output_tokens":8}`))["respond"]
	require.NotEmpty(t, read(t, st.Output).Output[0].Content[0].Text)
	// This version of LiteLLM cannot read what llama.cpp answers, and says 500.
	proxied := newTask("respond-proxied", "proxied-chat", task.EndpointResponses, `{"input":"Say hello.","max_output_tokens":8}`)
	proxied.MaxAttempts = 2
	failed := s.run(t, proxied)["respond-proxied"]
	require.Equal(t, task.Failed, failed.State)
	require.Equal(t, task.ClassDevice, failed.Error.Class)
	s.succeed(t, chatTask("chat-after", "proxied-chat", 4)) // the breaker is closed
}

// refuses sends prompts that are too long.
func (s *stack) refuses(t *testing.T) {
	tasks := []*task.Task{
		newTask("long-chat", "smollm2", task.EndpointChat, `{"messages":[{"role":"user","content":%q}]}`, long),
		newTask("long-response", "smollm2", task.EndpointResponses, `{"input":%q}`, long),
		newTask("long-proxied", "proxied-chat", task.EndpointChat, `{"messages":[{"role":"user","content":%q}]}`, long),
		newTask("long-embed", "smollm2-embed", task.EndpointEmbeddings, `{"input":%q}`, long),
		newTask("long-embed-proxied", "proxied-embed", task.EndpointEmbeddings, `{"input":%q}`, long),
	}
	for i := range 6 { // beside the long one in batched requests
		tasks = append(tasks, newTask(fmt.Sprint("short-", i), "smollm2-embed", task.EndpointEmbeddings, `{"input":"short %d"}`, i))
	}
	for id, st := range s.run(t, tasks...) {
		if strings.HasPrefix(id, "short") {
			require.Equal(t, task.Success, st.State, "%s: %+v", id, st.Error)
			continue
		}
		require.Equal(t, task.Failed, st.State, id)
		require.Contains(t, st.Error.Message, "the prompt is too long for device", id)
		require.Contains(t, string(st.Output), "tokens", "in the engine's own words")
	}
	harness.Eventually(t, patience, "what LiteLLM says of the context is learned", func() bool {
		return s.device(t, "litellm").Context["proxied-chat"] == length
	})
	for _, id := range []string{"smollm2", "smollm2-embed", "litellm"} {
		require.Equal(t, "up", s.device(t, id).State, "it is not at fault")
	}
	require.Zero(t, harness.SQL[int](t, s.in, "SELECT count(*) FROM audit_log WHERE action = 'breaker.opened'"))
}

// rejects sends what engines do not take.
func (s *stack) rejects(t *testing.T) {
	out := s.run(t,
		newTask("no-list", "smollm2", task.EndpointChat, `{"messages":"none"}`),
		newTask("no-embeddings", "smollm2", task.EndpointEmbeddings, `{"input":"x"}`),
		newTask("no-embeddings-proxied", "proxied-chat", task.EndpointEmbeddings, `{"input":"x"}`),
		newTask("no-moderations", "smollm2", task.EndpointModerations, `{"input":"x"}`),
		newTask("strange", "strange", task.EndpointChat, `{"messages":[{"role":"user","content":"hello"}]}`))
	for id, st := range out {
		require.Equal(t, task.Failed, st.State, id)
	}
	require.Equal(t, task.ClassInvalid, out["no-list"].Error.Class)
	for _, id := range []string{"no-embeddings", "no-embeddings-proxied", "no-moderations"} {
		require.Contains(t, out[id].Error.Message, "does not serve the endpoint", id)
	}
	require.Contains(t, out["strange"].Error.Message, "set its API key", "LiteLLM answers 400")
	s.succeed(t, chatTask("chat-still", "smollm2", 4))
}
