package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContextLengths(t *testing.T) {
	for name, c := range map[string]struct {
		pages map[string]string
		want  any
	}{
		"vLLM": {map[string]string{"/v1/models": `{"object":"list","data":[{"id":"Qwen/Qwen3-8B","object":"model","owned_by":"vllm","root":"Qwen/Qwen3-8B","parent":null,"max_model_len":40960},{"id":"lora","max_model_len":null}]}`},
			map[string]any{"Qwen/Qwen3-8B": 40960.0}},
		"llama.cpp": {map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`, "/props": `{"default_generation_settings":{"id":0,"n_ctx":1024,"params":{}},"total_slots":4}`},
			map[string]any{"*": 1024.0}},
		"llama.cpp, in its list": {map[string]string{"/v1/models": `{"object":"list","data":[{"id":"smollm2","object":"model","owned_by":"llamacpp","meta":{"n_ctx":512,"n_ctx_train":8192}}]}`},
			map[string]any{"smollm2": 512.0}},
		"TGI": {map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`, "/info": `{"model_id":"m","max_input_tokens":4095,"max_total_tokens":4096}`},
			map[string]any{"*": 4096.0}},
		"TEI":       {map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`, "/info": `{"model_id":"m","max_input_length":512}`}, map[string]any{"*": 512.0}},
		"none":      {map[string]string{"/v1/models": `{"data":[{"id":"m"}]}`}, nil},
		"senseless": {map[string]string{"/v1/models": `{"data":[{"id":"m","max_model_len":-1}]}`, "/props": `{"default_generation_settings":{"n_ctx":1e99}}`, "/info": `<html>`}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.pages["/health"] = ""
			s, a := engine(t, c.pages), newAPI(t)
			launch(t, quick("d", s.URL, a.URL))
			require.Equal(t, c.want, a.next(t)["context"])
		})
	}
}

// LiteLLM's /health asks every model behind it for an answer.
func TestLiteLLMIsNotAskedForAnswers(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			asked.Add(1)
		case "/health/liveliness":
			_, _ = io.WriteString(w, `"I'm alive!"`)
		case "/v1/models":
			_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
		default:
			w.WriteHeader(404)
		}
	}))
	t.Cleanup(s.Close)
	a := newAPI(t)
	launch(t, quick("d", s.URL, a.URL))
	for range 3 {
		require.NotContains(t, a.next(t), "problem")
	}
	require.Zero(t, asked.Load())
}

// llama.cpp and vLLM answer /health without a key.
func TestAWrongKeyIsNoticedWhereHealthNeedsNone(t *testing.T) {
	s := engine(t, map[string]string{"/health": "", "/v1/models": "keyed"})
	a := newAPI(t)
	cfg := quick("d", s.URL, a.URL)
	cfg.Models, cfg.KeySetting = []string{"m"}, "$KEY"
	launch(t, cfg)
	require.Contains(t, a.next(t)["problem"], "set the key of the device in $KEY")
	require.Contains(t, a.next(t)["problem"], "set the key of the device in $KEY", "as long as it is so")
}
