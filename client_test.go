package batchyard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/task"
)

// answers is a server without a network, for tests in which time is simulated.
type answers func(r *http.Request) (*http.Response, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func answer(status int, body string, headers ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

// asking is a client of a server without a network.
func asking(t *testing.T, a answers, options ...batchyard.Option) *batchyard.Client {
	t.Helper()
	options = append([]batchyard.Option{batchyard.WithHTTPClient(&http.Client{Transport: a})}, options...)
	c, err := batchyard.New("http://server.test", options...)
	require.NoError(t, err)
	return c
}

// serving is a client of a server that answers with h.
func serving(t *testing.T, h http.HandlerFunc, options ...batchyard.Option) *batchyard.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := batchyard.New(srv.URL+"/", options...)
	require.NoError(t, err)
	return c
}

func once() batchyard.Option { return batchyard.WithRetry(batchyard.RetryPolicy{}) }

// quickly retries without pauses, and sends a request three times at most.
func quickly() batchyard.Option {
	return batchyard.WithRetry(batchyard.RetryPolicy{MaxTries: 3, MinPause: 1, MaxPause: 1})
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return string(b)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "127.0.0.1:8080", "ftp://h", "http://", "http://user:secretword@h", "http://h?x=secretword", "http://h#x", "http://%zz"} {
		_, err := batchyard.New(url)
		require.ErrorContains(t, err, "http://host:port", url)
		require.NotContains(t, err.Error(), "secretword")
	}
	for name, o := range map[string]batchyard.Option{
		"tenant":      batchyard.WithTenant("a\nb"),
		"long tenant": batchyard.WithTenant(strings.Repeat("ä", task.MaxIDLength+1)),
		"key":         batchyard.WithAPIKey("a\r\nb"),
		"agent":       batchyard.WithUserAgent(""),
		"client":      batchyard.WithHTTPClient(nil),
		"retry":       batchyard.WithRetry(batchyard.RetryPolicy{MaxTries: -1}),
	} {
		_, err := batchyard.New("http://h", o)
		require.Error(t, err, name)
	}
	_, err := batchyard.New("http://h", batchyard.WithTenant(strings.Repeat("ä", task.MaxIDLength)))
	require.NoError(t, err)
}

func TestWhatARequestCarries(t *testing.T) {
	t.Parallel()
	var got *http.Request
	c := asking(t, func(r *http.Request) (*http.Response, error) {
		got = r
		return answer(200, `{}`), nil
	}, batchyard.WithTenant("Bücher"), batchyard.WithAPIKey("k-1"))
	_, err := c.Get(t.Context(), "a/b c?")
	require.NoError(t, err)
	require.Equal(t, "/v1/tasks/a%2Fb%20c%3F", got.URL.EscapedPath())
	require.Equal(t, "Bücher", got.Header.Get("X-Batchyard-Tenant"))
	require.Equal(t, "Bearer k-1", got.Header.Get("Authorization"))
	require.Equal(t, "batchyard-go/"+strings.TrimPrefix(batchyard.Version, "v"), got.UserAgent())
	require.Empty(t, got.Header.Get("Content-Type"))

	for name, call := range map[string]func() error{
		"get":     func() error { _, err := c.Get(t.Context(), ""); return err },
		"wait":    func() error { _, err := c.Wait(t.Context(), ""); return err },
		"cancel":  func() error { _, err := c.Cancel(t.Context(), ""); return err },
		"job":     func() error { _, err := c.Job(t.Context(), ""); return err },
		"drain":   func() error { _, err := c.Drain(t.Context(), ""); return err },
		"results": func() error { return lastError(c.Results(t.Context(), "")) },
		"a nil":   func() error { return c.Submit(t.Context(), nil) },
		"a task":  func() error { return c.Submit(t.Context(), &task.Task{Input: task.Input("{")}) },
	} {
		got = nil
		require.ErrorIs(t, call(), batchyard.ErrInvalid, name)
		require.Nil(t, got, "%s: what can be seen to be wrong is not sent", name)
	}
	require.NoError(t, c.Submit(t.Context()), "no tasks are no request")
	require.Nil(t, got)
}

func lastError[T any](seq func(func(T, error) bool)) (last error) {
	for _, err := range seq {
		last = err
	}
	return last
}

// A retry sends what the first try sent, ids included.
func TestSubmitRetriesTheSameTasks(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	var bodies sync.Map
	c := serving(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies.Store(string(b), true)
		switch n.Add(1) {
		case 1:
			http.Error(w, `{"title":"Service Unavailable","detail":"Kafka is away"}`, http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler) // the connection breaks
		case 3:
			http.Error(w, "not even JSON", http.StatusTooManyRequests)
		default:
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"tasks":[{},{}]}`)
		}
	}, batchyard.WithRetry(batchyard.RetryPolicy{MaxTries: 4, MinPause: 1, MaxPause: 1}))
	tasks := []*task.Task{{Model: "m", Input: task.Input(`{"text":"<ä & 1.0>"}`)}, {ID: "mine", Model: "m", Input: task.Input(`{}`)}}
	require.NoError(t, c.Submit(t.Context(), tasks...))
	require.EqualValues(t, 4, n.Load())
	require.Equal(t, "mine", tasks[1].ID)
	require.Len(t, tasks[0].ID, 36)
	different := 0
	bodies.Range(func(body, _ any) bool {
		different++
		require.Contains(t, body, tasks[0].ID)
		require.Contains(t, body, `{"text":"<ä & 1.0>"}`, "the input is sent as it is")
		return true
	})
	require.Equal(t, 1, different)
}

// Something between us that answers 200 to everything has accepted nothing.
func TestOnly202IsAccepted(t *testing.T) {
	t.Parallel()
	for status, body := range map[int]string{200: `{}`, 204: ``, 202: `<html>`} {
		c := asking(t, func(*http.Request) (*http.Response, error) { return answer(status, body), nil })
		require.Error(t, c.Submit(t.Context(), &task.Task{Model: "m", Input: task.Input(`{}`)}), status)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	kinds := []error{batchyard.ErrInvalid, batchyard.ErrUnauthorized, batchyard.ErrNotFound, batchyard.ErrConflict, batchyard.ErrUnavailable}
	for status, want := range map[int]error{
		302: nil, 400: batchyard.ErrInvalid, 401: batchyard.ErrUnauthorized, 403: batchyard.ErrUnauthorized, 404: batchyard.ErrNotFound,
		405: nil, 409: batchyard.ErrConflict, 413: batchyard.ErrInvalid, 415: batchyard.ErrInvalid, 422: batchyard.ErrInvalid,
		429: batchyard.ErrUnavailable, 500: nil, 502: batchyard.ErrUnavailable, 503: batchyard.ErrUnavailable, 504: batchyard.ErrUnavailable,
	} {
		for _, body := range []string{"", "<html>no</html>", `{"title":"T","status":200,"detail":"D","trace_id":"4bf9","errors":[{"pointer":"/0/model","detail":"missing"},{"pointer":"/1","detail":"no"}]}`} {
			tries := 0
			c := asking(t, func(*http.Request) (*http.Response, error) {
				tries++
				return answer(status, body, "Retry-After", "7"), nil
			}, once())
			_, err := c.Get(t.Context(), "x")
			for _, kind := range kinds {
				require.Equal(t, kind == want, errors.Is(err, kind), "%d %v", status, kind) //nolint:errorlint // which of them it is
			}
			var e *batchyard.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, status, e.Status, "the status is the answer's, whatever the document says")
			require.Equal(t, 7*time.Second, e.RetryAfter)
			require.Equal(t, 1, tries)
			if !strings.HasPrefix(body, "{") {
				require.Contains(t, e.Error(), fmt.Sprintf("status %d", status))
				continue
			}
			require.Equal(t, []batchyard.FieldProblem{{Pointer: "/0/model", Detail: "missing"}, {Pointer: "/1", Detail: "no"}}, e.Fields)
			require.True(t, strings.HasPrefix(e.Error(), "D\n/0/model: missing\n/1: no"))
			require.Equal(t, status >= 500, strings.Contains(e.Error(), "trace id 4bf9"))
		}
	}
}

func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	c, err := batchyard.New("http://"+l.Addr().String(), quickly())
	require.NoError(t, err)
	_, err = c.Get(t.Context(), "x")
	require.ErrorIs(t, err, batchyard.ErrUnavailable)
	var away *batchyard.ConnectionError
	require.ErrorAs(t, err, &away)
	require.Equal(t, "http://"+l.Addr().String(), away.Server)
	require.ErrorContains(t, err, "is it running")
	require.ErrorContains(t, lastError(c.Results(t.Context(), "j")), "reading the results of job j: connecting to the server")
}

// A redirect would carry tasks and the key to a server that the user did not name.
func TestRedirectsAreRefused(t *testing.T) {
	t.Parallel()
	var reached atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	t.Cleanup(elsewhere.Close)
	h := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}
	follows := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return nil }}
	for _, o := range []batchyard.Option{batchyard.WithUserAgent("x"), batchyard.WithHTTPClient(follows)} {
		c := serving(t, h, batchyard.WithAPIKey("k"), o)
		err := c.Submit(t.Context(), &task.Task{Model: "m", Input: task.Input(`{}`)})
		var e *batchyard.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, http.StatusTemporaryRedirect, e.Status)
		require.Error(t, lastError(c.Results(t.Context(), "j")))
	}
	require.False(t, reached.Load())
	require.NoError(t, follows.CheckRedirect(nil, nil), "the caller's client is as it was")
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	endless := func(w http.ResponseWriter, _ *http.Request) {
		block := strings.Repeat(" ", 1<<20)
		for {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}
	c := serving(t, endless, quickly())
	_, err := c.Page(t.Context(), batchyard.Filter{})
	require.ErrorContains(t, err, "larger than 64 MiB")
	require.ErrorContains(t, lastError(c.Results(t.Context(), "j")), "larger than 16 MiB")
	c = serving(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		endless(w, r)
	})
	_, err = c.Page(t.Context(), batchyard.Filter{})
	require.ErrorIs(t, err, batchyard.ErrConflict)
}

func TestRetryPolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		policy     batchyard.RetryPolicy
		retryAfter string
		tries      int
		took       time.Duration // at least, and no more than three times that
	}{
		"none":              {batchyard.RetryPolicy{}, "", 1, 0},
		"one try":           {batchyard.RetryPolicy{MaxTries: 1, MaxElapsed: time.Hour}, "", 1, 0},
		"by tries":          {batchyard.RetryPolicy{MaxTries: 4, MinPause: time.Second, MaxPause: time.Second}, "", 4, 1500 * time.Millisecond},
		"Retry-After":       {batchyard.RetryPolicy{MaxTries: 3}, "20", 3, 40 * time.Second},
		"absurd":            {batchyard.RetryPolicy{MaxTries: 2}, "999999999999", 2, time.Minute},
		"no date":           {batchyard.RetryPolicy{MaxTries: 2, MinPause: 1, MaxPause: 1}, "Fri, 31 Dec 1999 23:59:59 GMT", 2, 0},
		"known server":      {batchyard.RetryPolicy{MaxTries: 3, MinPause: 1, MaxPause: 1, KnownOnly: true}, "", 3, 0},
		"until it has been": {batchyard.RetryPolicy{MaxElapsed: time.Minute, MinPause: 10 * time.Second}, "", 0, 40 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				client := asking(t, func(*http.Request) (*http.Response, error) {
					tries++
					return answer(503, `{"detail":"away"}`, "Retry-After", c.retryAfter), nil
				}, batchyard.WithRetry(c.policy))
				began := time.Now()
				_, err := client.Get(t.Context(), "x")
				require.ErrorIs(t, err, batchyard.ErrUnavailable)
				if c.tries > 0 {
					require.Equal(t, c.tries, tries)
				}
				require.GreaterOrEqual(t, time.Since(began), c.took)
				require.LessOrEqual(t, time.Since(began), 3*c.took+time.Second)
			})
		})
	}
}

// KnownOnly tells a wrong address from an outage by whether there was ever an answer.
func TestRetryOfAServerThatWentAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := asking(t, func(*http.Request) (*http.Response, error) {
			if tries++; tries == 2 {
				return answer(404, `{"detail":"no such task"}`), nil
			}
			return nil, errors.New("connection refused")
		}, batchyard.WithRetry(batchyard.RetryPolicy{MaxTries: 5, KnownOnly: true}))
		_, err := c.Get(t.Context(), "x")
		require.ErrorIs(t, err, batchyard.ErrUnavailable)
		require.Equal(t, 1, tries)
		_, err = c.Get(t.Context(), "x")
		require.ErrorIs(t, err, batchyard.ErrNotFound)
		_, err = c.Get(t.Context(), "x")
		require.ErrorIs(t, err, batchyard.ErrUnavailable)
		require.Equal(t, 2+5, tries)
	})
}

// silent never answers.
func silent(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, context.Cause(r.Context())
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := asking(t, silent, once())
		for what, call := range map[string]func(context.Context) error{
			"get":     func(ctx context.Context) error { _, err := c.Get(ctx, "x"); return err },
			"results": func(ctx context.Context) error { return lastError(c.Results(ctx, "j")) },
			"submit":  func(ctx context.Context) error { return c.Submit(ctx, &task.Task{Model: "m"}) },
		} {
			began := time.Now()
			err := call(t.Context())
			require.ErrorIs(t, err, batchyard.ErrUnavailable, what)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "%s: the caller's context has not ended", what)
			require.NotErrorIs(t, err, context.Canceled, what)
			require.Equal(t, 40*time.Second, time.Since(began), what)

			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err = call(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, what)
			require.NotErrorIs(t, err, batchyard.ErrUnavailable, what)

			ctx, cancel = context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			require.ErrorIs(t, call(ctx), context.Canceled, what)
		}
	})
}

// The end of the context ends the pauses, too.
func TestContextEndsRetries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := asking(t, func(*http.Request) (*http.Response, error) { return answer(503, ``, "Retry-After", "60"), nil })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		_, err := c.Get(ctx, "x")
		require.ErrorIs(t, err, batchyard.ErrUnavailable, "why it was retried says more than that the time is over")
		require.Equal(t, 5*time.Second, time.Since(began))
	})
}

func TestWaitPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var waits []string
		state := task.Pending
		c := asking(t, func(r *http.Request) (*http.Response, error) {
			waits = append(waits, r.URL.Query().Get("wait"))
			if len(waits) == 3 {
				state = task.Expired
			}
			return answer(200, encode(t, batchyard.TaskStatus{TaskID: "x", State: state})), nil
		})
		began := time.Now()
		s, err := c.Wait(t.Context(), "x")
		require.NoError(t, err)
		require.Equal(t, task.Expired, s.State)
		require.Equal(t, []string{"30s", "30s", "30s"}, waits)
		require.Equal(t, 2*time.Second, time.Since(began), "a server that does not wait is not asked all the time")

		waits, state = []string{"", "", ""}, task.Running
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = c.Wait(ctx, "x")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "RUNNING")
		require.Equal(t, []string{"9s", "8.1s"}, waits[3:5])
	})
}

func TestWaitJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := asking(t, func(*http.Request) (*http.Response, error) {
			if asked++; asked < 3 {
				return answer(404, `{"detail":"no such job"}`), nil
			}
			return answer(200, encode(t, task.Job{JobID: "j", Total: 9, Done: int64(asked)})), nil
		})
		j, err := c.WaitJob(t.Context(), "j", 5)
		require.NoError(t, err)
		require.EqualValues(t, 5, j.Done)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = c.WaitJob(ctx, "j", 1000)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// resultLine is a result as a server sends it.
func resultLine(t *testing.T, id string) string {
	t.Helper()
	return encode(t, task.Result{TaskID: id, Tenant: "acme", State: task.Success, Model: "m", Output: task.Input(`{"a":1}`), FinishedAt: time.Unix(1, 0).UTC()}) + "\n"
}

func TestResultsThatBreakOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		more string // after one result
		ends error  // how the body ends
		says error
	}{
		"connection": {"", errors.New("connection reset"), batchyard.ErrUnavailable},
		"half":       {`{"task_id":"b`, io.ErrUnexpectedEOF, batchyard.ErrUnavailable},
		"not JSON":   {"<html>\n", io.EOF, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := asking(t, func(*http.Request) (*http.Response, error) {
				r := answer(200, "")
				r.Body = io.NopCloser(io.MultiReader(strings.NewReader(resultLine(t, "a")+"\n"+c.more), broken{c.ends}))
				return r, nil
			})
			var ids []string
			var last error
			for r, err := range client.Results(t.Context(), "j") {
				require.NoError(t, last, "an error is the last thing")
				if last = err; err == nil {
					ids = append(ids, r.TaskID)
				}
			}
			require.Equal(t, []string{"a"}, ids)
			require.Error(t, last, "half of the results must not look like all of them")
			if c.says != nil {
				require.ErrorIs(t, last, c.says)
			}
		})
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// A stream may be of any length, and its reader may take any time, but the server
// may not fall silent.
func TestResultsOfAServerThatFallsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := asking(t, func(r *http.Request) (*http.Response, error) {
			out, in := io.Pipe()
			context.AfterFunc(r.Context(), func() { _ = in.CloseWithError(context.Cause(r.Context())) })
			line := resultLine(t, "a")
			go func() {
				for range 3 {
					_, _ = io.WriteString(in, line)
					<-time.After(30 * time.Second)
				}
			}()
			resp := answer(200, "")
			resp.Body = out
			return resp, nil
		})
		began, n := time.Now(), 0
		var last error
		for _, err := range c.Results(t.Context(), "j") {
			if last = err; err == nil {
				n++
				<-time.After(time.Hour)
			}
		}
		require.Equal(t, 3, n)
		require.ErrorIs(t, last, batchyard.ErrUnavailable)
		require.ErrorContains(t, last, "nothing came for 40s")
		require.Equal(t, 3*time.Hour+40*time.Second, time.Since(began))
	})
}

func TestResultsCanBeLeft(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	c := serving(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		line := resultLine(t, "a")
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	})
	for r, err := range c.Results(t.Context(), "j") {
		require.NoError(t, err)
		require.JSONEq(t, `{"a":1}`, string(r.Output))
		break
	}
	select {
	case <-gone:
	case <-t.Context().Done():
	case <-time.After(time.Minute):
		require.FailNow(t, "the server still sends what the client does not read")
	}
}

func TestListGoesThroughPages(t *testing.T) {
	t.Parallel()
	c := asking(t, func(r *http.Request) (*http.Response, error) {
		q := r.URL.Query()
		if q.Get("state") != "FAILED" || q.Get("limit") != "2" {
			return answer(422, `{"detail":"no"}`), nil
		}
		page := map[string]any{"tasks": []batchyard.TaskStatus{{TaskID: "first" + q.Get("cursor")}, {TaskID: "second"}}, "next": q.Get("cursor") + "x"}
		switch q.Get("cursor") {
		case "xx":
			page["next"] = ""
		case "xxx":
			return answer(503, ``), nil
		}
		return answer(200, encode(t, page)), nil
	}, once())
	var ids []string
	for s, err := range c.List(t.Context(), batchyard.Filter{State: task.Failed, Limit: 2}) {
		require.NoError(t, err)
		ids = append(ids, s.TaskID)
		require.JSONEq(t, encode(t, batchyard.TaskStatus{TaskID: s.TaskID}), string(s.RawJSON()))
	}
	require.Equal(t, []string{"first", "second", "firstx", "second", "firstxx", "second"}, ids)
	require.ErrorIs(t, lastError(c.List(t.Context(), batchyard.Filter{State: task.Failed, Limit: 2, Cursor: "xxx"})), batchyard.ErrUnavailable)
	for range c.List(t.Context(), batchyard.Filter{State: task.Failed, Limit: 2}) {
		break // the iterator must not go on
	}
}
