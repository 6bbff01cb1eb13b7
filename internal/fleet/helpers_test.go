package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// start returns a fleet and a client with its own connections, so that goleak
// sees both end.
func start(t testing.TB, specs ...Spec) (*Fleet, *http.Client) {
	t.Helper()
	f, err := Start(context.Background(), specs)
	require.NoError(t, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		f.Close()
	})
	return f, &http.Client{Transport: transport, Timeout: patience}
}

type reply struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (r reply) into(t *testing.T, v any) {
	t.Helper()
	require.NoError(t, r.err)
	decoder := json.NewDecoder(bytes.NewReader(r.body))
	decoder.DisallowUnknownFields()
	require.NoErrorf(t, decoder.Decode(v), "%s", r.body)
}

func post(ctx context.Context, c *http.Client, url, body string, headers ...string) reply {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return reply{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return do(c, req)
}

func get(c *http.Client, url string) reply {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return reply{err: err}
	}
	return do(c, req)
}

func do(c *http.Client, req *http.Request) reply {
	resp, err := c.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return reply{status: resp.StatusCode, header: resp.Header, body: body, err: err}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, time.Millisecond, what)
}

const hello = `{"model":"m","messages":[{"role":"user","content":"hello"}]}`
