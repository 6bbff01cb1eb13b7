package app

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/config"
)

// config.yaml and docs/configuration.md are generated from the code, and config.yaml
// loads.
func TestShippedConfigurationIsTheCode(t *testing.T) {
	_, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml"), nil)
	require.ErrorContains(t, err, "there is no configuration file")
	var cfg Config
	require.NoError(t, config.Load(&cfg, config.Options{}))

	shipped, err := os.ReadFile("../../../config.yaml")
	require.NoError(t, err)
	var want bytes.Buffer
	require.NoError(t, config.WriteYAML(&want, &cfg, config.Commented))
	require.True(t, bytes.Contains(shipped, bytes.TrimSpace(want.Bytes())), "config.yaml does not match the code: run `make config`")
	loaded, err := LoadConfig("../../../config.yaml", nil)
	require.NoError(t, err)
	var again bytes.Buffer
	require.NoError(t, config.WriteYAML(&again, &loaded, config.Commented))
	require.Equal(t, want.String(), again.String(), "the file must load as it was written")

	page, err := os.ReadFile("../../../docs/configuration.md")
	require.NoError(t, err)
	want.Reset()
	require.NoError(t, config.WriteMarkdown(&want, &cfg))
	require.True(t, bytes.Contains(page, bytes.TrimSpace(want.Bytes())), "docs/configuration.md does not match the code: run `make config`")
}

// Every setting has a description, and integers have a unit.
func TestEverySettingIsDescribed(t *testing.T) {
	var cfg Config
	for _, s := range config.Describe(&cfg) {
		require.NotEmpty(t, s.Doc, s.Key)
		if s.Type == "integer" && s.Key != "redis.db" {
			require.NotEmpty(t, s.Unit, s.Key)
		}
	}
}

// Loading also reports every problem that struct tags cannot express.
func TestListsAndAddressesAreChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte("callbacks:\n  allow_networks: [10.1]\n  retries: [5s, x]\npostgres:\n  url: hello\n"), 0o600))
	_, err := LoadConfig(path, nil)
	for _, want := range []string{`callbacks.allow_networks: "10.1" is not a network`, `callbacks.retries: "x" is not a valid pause`, "postgres.url: not a Postgres URL"} {
		require.ErrorContains(t, err, want)
	}
	_, err = LoadConfig("", map[string]string{"postgres.url": ""})
	require.ErrorContains(t, err, "postgres.url: not a Postgres URL")
}
