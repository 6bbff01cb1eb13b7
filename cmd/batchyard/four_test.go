package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
)

// engine is an inference server as people run them.
type engine struct {
	*httptest.Server
	base, key, model string
}

func newEngine(t *testing.T, e engine, start func(*httptest.Server)) *engine {
	t.Helper()
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, ok := strings.CutPrefix(r.URL.Path, e.base)
		switch {
		case !ok:
			http.NotFound(w, r)
		case e.key != "" && r.Header.Get("Authorization") != "Bearer "+e.key:
			w.WriteHeader(http.StatusUnauthorized)
		case path == "/v1/models":
			_, _ = fmt.Fprintf(w, `{"object":"list","data":[{"id":%q}]}`, e.model)
		case path == "/v1/chat/completions":
			var in struct{ Model string }
			if json.NewDecoder(r.Body).Decode(&in) != nil || in.Model != e.model {
				w.WriteHeader(http.StatusNotFound)
				_, _ = fmt.Fprintf(w, `{"error":{"message":"The model %s does not exist."}}`, in.Model)
				return
			}
			_, _ = io.WriteString(w, `{"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"yes"}}]}`)
		default:
			http.NotFound(w, r)
		}
	}))
	e.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients fail on purpose
	start(e.Server)
	t.Cleanup(e.Close)
	return &e
}

// fourServers are what a new user has: one with a key and a base path, one with a self-signed certificate, one that is down,
// and one whose model is called otherwise.
type fourServers struct {
	keyed, signed, down, other *engine
	caFile                     string
}

func newFourServers(t *testing.T) *fourServers {
	t.Helper()
	f := &fourServers{
		keyed:  newEngine(t, engine{base: "/openai", key: "s3cret", model: "m"}, (*httptest.Server).Start),
		signed: newEngine(t, engine{model: "n"}, (*httptest.Server).StartTLS),
		down:   newEngine(t, engine{}, (*httptest.Server).Start),
		other:  newEngine(t, engine{model: "mini-8b"}, (*httptest.Server).Start),
		caFile: filepath.Join(t.TempDir(), "ca.pem"),
	}
	f.down.Close()
	require.NoError(t, os.WriteFile(f.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.signed.Certificate().Raw}), 0o600))
	return f
}

// file asks for models as the user calls them.
func (f *fourServers) file(t *testing.T) string {
	var b bytes.Buffer
	for i, model := range []string{"m", "n", "mini"} {
		_, _ = fmt.Fprintf(&b, `{"custom_id":"c%d","method":"POST","url":"/v1/chat/completions","body":{"model":%q,"messages":[{"role":"user","content":"hi"}]}}`+"\n", i, model)
	}
	return write(t, "tasks.jsonl", b.String())
}

// naive is how the user connects them at first, and right how the terminal says that they must.
func (f *fourServers) naive() []string {
	return []string{"--device", "keyed=" + f.keyed.URL + "/openai/v1", "--device", "signed=" + f.signed.URL, "--device", "down=" + f.down.URL, "--device", "other=" + f.other.URL}
}

func (f *fourServers) right() []string {
	return []string{"--device", "keyed=" + f.keyed.URL + ",base_path=/openai,key_env=TEST_FOUR_KEY", "--device", "signed=" + f.signed.URL + ",ca_file=" + f.caFile,
		"--device", "down=" + f.down.URL, "--device", "other=" + f.other.URL + ",alias=mini=mini-8b"}
}

// causes are what the terminal says of the devices that do not answer.
func (f *fourServers) causes() map[string]string {
	return map[string]string{
		"keyed":  "health check: status 401; set the key of the device in key_env or key_file",
		"signed": "tls: failed to verify certificate: x509: certificate signed by unknown authority; if the device has a certificate of its own, set ca_file to it",
		"down":   "connect: connection refused; start the server, or check the port in its url",
	}
}

// hurried is a cli for whose commands time passes quickly.
func hurried() (c *cli.Env, stdout, stderr *syncBuffer) {
	stdout, stderr = &syncBuffer{}, &syncBuffer{}
	c = newCLI(strings.NewReader(""), stdout, stderr)
	began := time.Now()
	c.Now = func() time.Time { return began.Add(20 * time.Since(began)) }
	return c, stdout, stderr
}

func says(t *testing.T, b *syncBuffer, texts ...string) {
	t.Helper()
	for _, text := range texts {
		require.Eventuallyf(t, func() bool { return strings.Contains(b.String(), text) }, time.Minute, 10*time.Millisecond, "%q is not in:\n%s", text, b)
	}
}

// The terminal alone says what is wrong with each of four servers, and what to do.
func TestRunExplainsFourServers(t *testing.T) {
	t.Setenv("TEST_FOUR_KEY", "s3cret")
	f := newFourServers(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, _, errs := hurried()
	done := make(chan int, 1)
	args := append([]string{"run", f.file(t)}, f.naive()...)
	go func() { done <- run(ctx, c, args) }()
	for name, cause := range f.causes() {
		says(t, errs, cause+"; it gets no tasks until it does\n")
		require.Regexp(t, `(?m)^device `+name+` at http\S+ does not answer: `, errs.String())
	}
	says(t, errs, "no device serves mini, for which 1 task asks; there is mini-8b; did you mean mini-8b? Ask for that, or give its device the option alias=mini=mini-8b\n",
		"no device serves m, for which", "(did you mean mini-8b?)", "down (down) does not answer: ", "signed (down) does not answer: tls: ")
	// It is up, or nothing serves it yet: time passes too quickly here.
	require.Eventually(t, func() bool {
		return regexp.MustCompile(`other \((up|unserved)\) does not serve mini(; |: .*)models mini-8b\n`).MatchString(errs.String())
	}, time.Minute, 10*time.Millisecond, "%s", errs)
	cancel()
	require.Equal(t, cli.ExitInterrupted, <-done)

	r := try(t, "", append([]string{"run", f.file(t)}, f.right()...)...)
	require.Equal(t, cli.ExitOK, r.code, r.err)
	require.Regexp(t, `tasks +3\n +SUCCESS +3\n`, r.out)
	require.NotContains(t, r.err, "no device serves")
	require.NotContains(t, r.err, "device keyed")
}

// The same for dev, whose devices may be in its configuration and change while it runs.
func TestDevExplainsFourServersAndFollowsTheFile(t *testing.T) {
	f := newFourServers(t)
	key := write(t, "key", "wrong")
	config := write(t, "config.yaml", "")
	describe := func(devices string) {
		t.Helper()
		next := config + ".next"
		require.NoError(t, os.WriteFile(next, []byte("devices:\n  list:\n"+devices), 0o600))
		require.NoError(t, os.Rename(next, config))
	}
	keyed := fmt.Sprintf("    - {name: keyed, url: %s, base_path: /openai, key_file: %s}\n", f.keyed.URL, key)
	describe(keyed + fmt.Sprintf("    - {name: signed, url: %s}\n    - {name: other, url: %s}\n", f.signed.URL, f.other.URL))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, out, errs := hurried()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, c, []string{"dev", "-c", config, "--listen", "127.0.0.1:0", "--device", "down=" + f.down.URL})
	}()
	says(t, out, "ready\n", "health check: status 401; set the key of the device in "+key)
	require.Regexp(t, `(?m)^  device  other   up    `+f.other.URL+` +models mini-8b$`, out.String())
	require.Regexp(t, `(?m)^  device  signed  down  `+f.signed.URL+` +tls: failed to verify certificate`, out.String())
	require.Regexp(t, `(?m)^  device  down    down  `+f.down.URL+` +dial tcp`, out.String())
	says(t, errs, "device signed at "+f.signed.URL+" does not answer: tls: ")
	server := strings.Fields(out.String())[2]

	require.NoError(t, os.WriteFile(key, []byte("s3cret"), 0o600))
	says(t, errs, "device keyed at "+f.keyed.URL+"/openai answers now\n")

	// A mistake changes nothing; then one is changed, one is removed, and one is new.
	describe(keyed + "    - {name: keyed, url: http://elsewhere}\n")
	says(t, errs, "there are two devices")
	// The file that it names is late, which nothing tells.
	late := filepath.Join(t.TempDir(), "ca.pem")
	describe(keyed + fmt.Sprintf("    - {name: signed, url: %s, ca_file: %s}\n    - {name: new, url: %s, aliases: {mini: mini-8b}, tags: [late]}\n", f.signed.URL, late, f.other.URL))
	says(t, errs, "open "+late)
	pem, err := os.ReadFile(f.caFile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(late, pem, 0o600))
	says(t, errs, "device signed at "+f.signed.URL+" answers now\n")
	list := func() string { return ok(t, "devices", "list", "--server", server) }
	require.Eventually(t, func() bool { l := list(); return strings.Contains(l, "new ") && !strings.Contains(l, "other ") }, time.Minute, 50*time.Millisecond)
	require.Regexp(t, `(?m)^down +down +\S+ ago .* connect: connection refused; start the server, or check the port in its url$`, list(), "what the command line says stays")
	require.Regexp(t, `(?m)^keyed +up +.*ago .* m +`, list())
	r := try(t, "", "submit", f.file(t), "--server", server, "--wait")
	require.Equal(t, cli.ExitOK, r.code, r.err)
	require.Regexp(t, `SUCCESS +3\n`, r.out)

	f.other.Close()
	says(t, errs, "device new at "+f.other.URL+" does not answer: ")
	cancel()
	require.Equal(t, cli.ExitOK, <-done)
}
