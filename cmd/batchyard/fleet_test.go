package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/internal/fleet"
	"github.com/batchyard/batchyard/test/testenv"
)

// output is what a command has written so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestASimulatedFleetPlaysOnCommand(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	done := make(chan error, 1)
	c := &cli.Env{Out: &out}
	go func() {
		done <- simulate(ctx, c, simulation{models: []string{"m"}, slots: 2, control: "127.0.0.1:0"}, []string{"good", "bad=bad_gateway"})
	}()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), "batchyard dev") }, testenv.Patience, time.Millisecond)
	urls := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\S+) +(http://\S+)`).FindAllStringSubmatch(out.String(), -1) {
		urls[m[1]] = m[2]
	}
	require.Len(t, urls, 3)
	ask := func(method, url, body string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	chat := func(id string) int {
		code, _ := ask(http.MethodPost, urls[id]+"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
		return code
	}
	require.Equal(t, 200, chat("good"))
	require.Equal(t, 502, chat("bad"))
	code, _ := ask(http.MethodPut, urls["controls"]+"/good/no_endpoint/405", "")
	require.Equal(t, 204, code)
	code, _ = ask(http.MethodDelete, urls["controls"]+"/bad", "")
	require.Equal(t, 204, code)
	require.Equal(t, 405, chat("good"))
	require.Equal(t, 200, chat("bad"))
	_, state := ask(http.MethodGet, urls["controls"]+"/", "")
	require.Contains(t, state, `"play": "no_endpoint/405"`)
	require.Contains(t, state, `"requests": 2`)
	for path, want := range map[string]int{"/missing/reset": 404, "/good/nothing-like-it": 400} {
		code, _ = ask(http.MethodPut, urls["controls"]+path, "")
		require.Equal(t, want, code)
	}
	cancel()
	require.NoError(t, testenv.Receive(t, done, "the end of the command"))

	list := ok(t, "fleet", "--list")
	for _, p := range fleet.Plays() {
		require.Contains(t, list, p.Name)
	}
	require.Equal(t, cli.ExitUsage, try(t, "", "fleet", "a=nothing-like-it").code)
}
