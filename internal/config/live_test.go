package config_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/config"
)

type engine struct {
	Name    string            `yaml:"name" live:"true" default:"a" doc:"Its name."`
	Weights map[string]string `yaml:"weights" live:"true" doc:"What counts."`
	Wait    time.Duration     `yaml:"wait" default:"1s" doc:"How long."`
	Key     string            `yaml:"key" secret:"true" doc:"A secret."`
}

type machine struct {
	Engine engine `yaml:"engine" doc:"What drives it."`
}

func TestChanges(t *testing.T) {
	t.Parallel()
	old := machine{engine{Name: "a", Wait: time.Second, Key: "one"}}
	require.Empty(t, config.Changes(&old, &old))
	updated := old
	updated.Engine.Weights = map[string]string{} // equals nil
	require.Empty(t, config.Changes(&old, &updated))

	updated = machine{engine{Name: "b", Weights: map[string]string{"x": "1"}, Wait: 2 * time.Second, Key: "two"}}
	require.Equal(t, []config.Change{
		{Key: "engine.name", Old: "a", New: "b", Live: true},
		{Key: "engine.weights", Old: "map[]", New: "map[x:1]", Live: true},
		{Key: "engine.wait", Old: "1s", New: "2s"},
		{Key: "engine.key", Old: "***", New: "***"},
	}, config.Changes(&old, &updated))

	config.Adopt(&old, &updated)
	require.Equal(t, machine{engine{Name: "b", Weights: map[string]string{"x": "1"}, Wait: time.Second, Key: "one"}}, old,
		"only live settings are copied")
}

func TestDocumentationMarksLiveSettings(t *testing.T) {
	t.Parallel()
	var m machine
	config.FillDefaults(&m)
	var md, yaml bytes.Buffer
	require.NoError(t, config.WriteMarkdown(&md, &m))
	require.Contains(t, md.String(), "Its name. *(can change at runtime)*")
	require.NotContains(t, md.String(), "How long. *(")
	require.NoError(t, config.WriteYAML(&yaml, &m, config.Commented))
	require.Contains(t, yaml.String(), "default: a; can change at runtime)")
}
