package device

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestModelNamesMatchAsEnginesMatchThem(t *testing.T) {
	t.Parallel()
	d := &Device{Models: []string{"llama3.2:latest", "qwen3:8b", "plain", "host:5000/team/model"}, Aliases: map[string]string{"gpt-4o-mini": "qwen3:8b", "plain": "other"}}
	for asked, own := range map[string]string{
		"llama3.2": "llama3.2:latest", "llama3.2:latest": "llama3.2:latest", "qwen3:8b": "qwen3:8b", "gpt-4o-mini": "qwen3:8b",
		"plain": "other", "plain:latest": "plain", "host:5000/team/model:latest": "host:5000/team/model",
		"qwen3": "", "qwen3:latest": "", "llama3": "", "": "", "llama3.2:1b": "", "qwen3:8b:latest": "", ":latest": "",
	} {
		got, ok := d.ModelName(asked)
		if own == "" {
			require.Falsef(t, ok, "%q is %q", asked, got)
			continue
		}
		require.Truef(t, ok, "%q", asked)
		require.Equal(t, own, got, asked)
	}
	d.Models = append(d.Models, AnyModel)
	for asked, own := range map[string]string{"new": "new", "llama3.2": "llama3.2:latest", "gpt-4o-mini": "qwen3:8b"} {
		got, ok := d.ModelName(asked)
		require.True(t, ok)
		require.Equal(t, own, got)
	}
}

func TestNearModels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ asked, names, near string }{
		{"qwen3", "llama3.2:latest qwen3:8b", "qwen3:8b"},
		{"smollm2", "/models/SmolLM2-135M-Instruct.Q8_0.gguf other", "/models/SmolLM2-135M-Instruct.Q8_0.gguf"},
		{"llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"},
		{"Llama 3.1 8B", "llama-3.1-70b llama_3.1_8b", "llama_3.1_8b"},
		{"mistrall", "mistral mixtral", "mistral"},
		{"gpt-4o", "llama qwen", ""},
		{"m", "n", ""},
		{"same", "same *", ""},
		{"", "a b", ""},
	} {
		require.Equal(t, c.near, NearestModel(c.asked, strings.Fields(c.names)), "%q among %s", c.asked, c.names)
	}
	require.Empty(t, NearestModel("a", []string{strings.Repeat("a", 10_000)}))
}

func TestAliasesAreChecked(t *testing.T) {
	t.Parallel()
	for _, bad := range []map[string]string{{"": "m"}, {"a": ""}, {"a\n": "m"}, {"*": "m"}, {"a": "*"}} {
		d := Device{ID: "d", URL: "http://d", Models: []string{"m"}, Aliases: bad}
		d.Normalize()
		require.ErrorContains(t, d.Validate(), "aliases", "%v", bad)
	}
}
