package engines

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// patience is for a small machine that has other things to do.
const patience = harness.Patience

// installed returns the path of something that scripts/engines has installed.
func installed(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("BATCHYARD_ENGINES")
	if dir == "" {
		t.Skip("BATCHYARD_ENGINES is not set: run make engines")
	}
	path := filepath.Join(dir, name)
	_, err := os.Stat(path)
	require.NoError(t, err, "run scripts/engines")
	return path
}

// server is an inference server, as a process.
type server struct {
	name, program, url, health string
	args                       []string
	log                        string
	key                        string
	cmd                        *exec.Cmd
	gone                       chan struct{}
}

// freePort returns a port that is free. Nothing else takes one in between, on a machine that runs these tests.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

const (
	slots  = 4
	length = 512 // tokens, of a slot
)

// startLlama starts llama.cpp with the small model under a name.
func startLlama(t testing.TB, name, key string, args ...string) *server {
	t.Helper()
	port := strconv.Itoa(freePort(t))
	s := &server{name: name, program: installed(t, "llama-server"), url: "http://127.0.0.1:" + port, health: "/health", key: key,
		args: append([]string{"-m", installed(t, "model.gguf"), "--host", "127.0.0.1", "--port", port, "--parallel", strconv.Itoa(slots),
			"--ctx-size", strconv.Itoa(slots * length), "--threads", "2", "--alias", name, "--metrics", "--no-webui"}, args...)}
	if key != "" {
		s.args = append(s.args, "--api-key", key)
	}
	s.start(t)
	return s
}

// startLiteLLM starts LiteLLM's proxy in front of engines, as proxied-NAME.
func startLiteLLM(t testing.TB, key string, behind map[string]*server) *server {
	t.Helper()
	port := strconv.Itoa(freePort(t))
	config := filepath.Join(t.TempDir(), "litellm.yaml")
	text := fmt.Sprintf("litellm_settings: {telemetry: false}\nrouter_settings: {num_retries: 0, disable_cooldowns: true}\ngeneral_settings: {master_key: %s}\nmodel_list:\n", key)
	for name, s := range behind {
		text += fmt.Sprintf("  - {model_name: proxied-%s, litellm_params: {model: openai/%s, api_base: %s/v1, api_key: %s}}\n", name, s.name, s.url, cmp.Or(s.key, "none"))
	}
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	s := &server{name: "litellm", program: installed(t, "litellm"), url: "http://127.0.0.1:" + port, health: "/health/liveliness", key: key,
		args: []string{"--config", config, "--host", "127.0.0.1", "--port", port}}
	s.start(t)
	return s
}

// start starts the server, and waits until it is well.
func (s *server) start(t testing.TB) {
	t.Helper()
	if s.log == "" {
		s.log = filepath.Join(t.TempDir(), s.name+".log")
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer func() { _ = log.Close() }()
	cmd := exec.Command(s.program, s.args...) //nolint:gosec,noctx // what scripts/engines installed; Cleanup kills it
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "LITELLM_LOCAL_MODEL_COST_MAP=True") // it asks the internet otherwise
	cmd.SysProcAttr = harness.EndWithParent()
	require.NoError(t, cmd.Start())
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(gone)
	}()
	s.cmd, s.gone = cmd, gone
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has already exited
		<-gone
		if text, err := os.ReadFile(s.log); err == nil && t.Failed() {
			t.Logf("=== %s\n%s", s.name, text[max(0, len(text)-4<<10):])
		}
	})
	harness.Eventually(t, patience, s.name+" is well", func() bool {
		select {
		case <-gone:
			text, _ := os.ReadFile(s.log)
			t.Fatalf("%s exited: %s", s.name, text[max(0, len(text)-4<<10):])
		default:
		}
		status, _, err := s.ask(t.Context(), http.MethodGet, s.health, "")
		return err == nil && status == http.StatusOK
	})
}

// kill ends the server in the middle of what it does.
func (s *server) kill(t testing.TB) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Kill())
	<-s.gone
}

// ask sends a request to the server itself.
func (s *server) ask(ctx context.Context, method, path, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if s.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// metric reads one of llama.cpp's metrics.
func (s *server) metric(t testing.TB, name string) float64 {
	t.Helper()
	status, text, err := s.ask(t.Context(), http.MethodGet, "/metrics", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, text)
	m := regexp.MustCompile(`(?m)^llamacpp:` + name + ` (\S+)`).FindStringSubmatch(text)
	require.NotNil(t, m, text)
	v, err := strconv.ParseFloat(m[1], 64)
	require.NoError(t, err)
	return v
}

// said returns how often the server has logged something.
func (s *server) said(t testing.TB, text string) int {
	t.Helper()
	log, err := os.ReadFile(s.log)
	require.NoError(t, err)
	return strings.Count(string(log), text)
}

// device is the server as --device describes it, with its key in a file.
func (s *server) device(t testing.TB, options string) string {
	t.Helper()
	word := fmt.Sprintf("%s=%s/v1,slots=%d%s", s.name, s.url, slots, options)
	if s.key != "" {
		path := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(path, []byte(s.key+"\n"), 0o600))
		word += ",key_file=" + path
	}
	return word
}

// within is how long tasks may take.
const within = 5 * time.Minute
