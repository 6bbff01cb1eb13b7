package callbacks

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/internal/fuzzing"
	"github.com/batchyard/batchyard/task"
)

// A callback's URL and the header of the answer come from users.
// Invalid URLs are refused with the task; every accepted one must make a request.
func FuzzURL(f *testing.F) {
	f.Add("https://user:secret@example.com:8443/hook?key=secret#x", "120")
	f.Add("http://[::1%25eth0]:80/", "Fri, 31 Dec 1999 23:59:59 GMT")
	f.Add("HTTP://EXAMPLE.com", "-1")
	f.Fuzz(func(t *testing.T, raw, after string) {
		fuzzing.Bound(t, len(raw)+len(after), func() { _, _ = task.CheckCallbackURL(raw), retryAfter(after, time.Unix(1, 0)) })
		require.GreaterOrEqual(t, retryAfter(after, time.Unix(1, 0)), time.Duration(0))
		if task.CheckCallbackURL(raw) != nil {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, raw, http.NoBody)
		require.NoErrorf(t, err, "%q was accepted and cannot be requested", raw)
		require.NotEmpty(t, req.URL.Host)
		problem, _ := explain(&url.Error{Op: "Post", URL: raw, Err: http.ErrHandlerTimeout})
		require.LessOrEqual(t, len(problem), maxProblem)
	})
}
