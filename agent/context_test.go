package agent

import (
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
