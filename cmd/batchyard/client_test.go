package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/cmd/internal/cli"
	"github.com/batchyard/batchyard/task"
)

// connectedTo is a client of a server that answers with h, and never pauses.
func connectedTo(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c := newCLI(strings.NewReader(""), io.Discard, io.Discard)
	c.Server, c.Tenant = srv.URL+"/", "acme"
	a, err := connect(c)
	require.NoError(t, err)
	a.submits, err = newClient(c, batchyard.RetryPolicy{MaxTries: 6, MinPause: 1, MaxPause: 1, KnownOnly: true})
	require.NoError(t, err)
	return a
}

func answer(w http.ResponseWriter, status int, body string) {
	if status >= 400 {
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

var someTasks = []*task.Task{{ID: "a", Tenant: "acme", Model: "m", Input: task.Input(`{}`)}}

func TestSubmitTriesAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	a := connectedTo(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("X-Batchyard-Tenant") != "acme" || !strings.Contains(string(body), `"task_id":"a"`) {
			answer(w, 400, `{"title":"Bad","detail":"wrong request"}`)
			return
		}
		switch n.Add(1) {
		case 1:
			answer(w, 503, `{"title":"Service Unavailable","detail":"the log did not answer in time"}`)
		case 2:
			answer(w, 429, `not even JSON`)
		default:
			answer(w, 202, `{"tasks":[]}`)
		}
	})
	require.NoError(t, a.Submit(t.Context(), someTasks))
	require.EqualValues(t, 3, n.Load())
}

func TestSubmitGivesUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status, tries, code int
		body, says          string
	}{
		"refused":   {422, 1, cli.ExitUsage, `{"detail":"0/model: it is missing (and 1 more)","errors":[{"pointer":"/0/model","detail":"it is missing"},{"pointer":"/1/id","detail":"too long"}]}`, "/1/id: too long"},
		"too large": {413, 1, cli.ExitUsage, `{"detail":"the body is larger"}`, "the body is larger"},
		"forbidden": {403, 1, cli.ExitFailed, `<html>no</html>`, "status 403"},
		"our fault": {500, 1, cli.ExitFailed, `{"detail":"an error on our side","trace_id":"4bf9"}`, "trace id 4bf9"},
		"away":      {503, 6, cli.ExitUnreachable, `{"detail":"ask again"}`, "ask again"},
		"elsewhere": {302, 1, cli.ExitFailed, ``, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			a := connectedTo(t, func(w http.ResponseWriter, _ *http.Request) {
				n.Add(1)
				w.Header().Set("Location", "/elsewhere")
				answer(w, c.status, c.body)
			})
			err := a.Submit(t.Context(), someTasks)
			require.ErrorContains(t, err, c.says)
			require.Equal(t, c.code, cli.CodeOf(err))
			require.EqualValues(t, c.tries, n.Load())
		})
	}
}

func TestServerThatWentAwayIsTriedAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	a := connectedTo(t, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 2 {
			panic(http.ErrAbortHandler) // the connection breaks
		}
		answer(w, 202, `{}`)
	})
	require.NoError(t, a.Submit(t.Context(), someTasks))
	require.NoError(t, a.Submit(t.Context(), someTasks))
	require.EqualValues(t, 3, n.Load())
}

func TestJobResultsBrokenOff(t *testing.T) {
	t.Parallel()
	a := connectedTo(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, `{"task_id":"a","tenant":"acme","state":"SUCCESS","model":"m","endpoint":"/v1/embeddings","finished_at":"2026-11-21T12:00:00Z"}`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	got := 0
	err := a.JobResults(t.Context(), "acme", "j", func(r *task.Result) error {
		require.Equal(t, "a", r.TaskID)
		got++
		return nil
	})
	require.Error(t, err, "a part of the results must not look like all of them")
	require.Equal(t, cli.ExitUnreachable, cli.CodeOf(err))
	require.Equal(t, 1, got)
}

func TestAnswerIsBounded(t *testing.T) {
	t.Parallel()
	a := connectedTo(t, func(w http.ResponseWriter, _ *http.Request) {
		block := strings.Repeat(" ", 1<<20)
		for range 65 {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	})
	_, err := a.Page(t.Context(), batchyard.Filter{})
	require.ErrorContains(t, err, "larger than")
}

func TestJobThatIsUnknownYet(t *testing.T) {
	t.Parallel()
	a := connectedTo(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/jobs/j" {
			answer(w, 400, `{}`)
			return
		}
		answer(w, 404, `{"detail":"no task of such a job"}`)
	})
	j, err := a.job(t.Context(), "j")
	require.NoError(t, err)
	require.Empty(t, j.Tasks)
}

// Tasks whose ids another job has used never show up, and --wait says so.
func TestWaitForTasksThatAreNotTheJobs(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			answer(w, 202, `{}`)
		case r.Method == http.MethodPut:
			answer(w, 200, `{}`)
		case asked.Add(1) < 4:
			answer(w, 200, `{"total":2,"known":1,"done":1,"tasks":{"SUCCESS":1}}`)
		default:
			answer(w, 200, `{"total":2,"known":2,"done":2,"tasks":{"SUCCESS":2}}`)
		}
	}))
	t.Cleanup(srv.Close)
	var out, errOut strings.Builder
	c := newCLI(strings.NewReader(`{"model":"m","input":{}}`+"\n"+`{"task_id":"x","model":"m","input":{}}`), &out, &errOut)
	now := noon
	c.Now = func() time.Time { now = now.Add(strangeAfter / 2); return now }
	require.Equal(t, cli.ExitOK, run(t.Context(), c, []string{"submit", "-", "--wait", "--server", srv.URL}))
	require.Equal(t, 1, strings.Count(errOut.String(), "running: unknown to this job: 1 task;"), errOut.String())
}

// All tasks of a long job end between two looks, so none is reported as unknown.
func TestWaitForTasksThatAreAllKnown(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			answer(w, 202, `{}`)
		case r.Method == http.MethodPut:
			answer(w, 200, `{}`)
		case asked.Add(1) < 3:
			answer(w, 200, `{"total":1,"known":1,"done":0,"tasks":{"RUNNING":1}}`)
		default:
			answer(w, 200, `{"total":1,"known":1,"done":1,"tasks":{"SUCCESS":1}}`)
		}
	}))
	t.Cleanup(srv.Close)
	var out, errOut strings.Builder
	c := newCLI(strings.NewReader(`{"model":"m","input":{}}`), &out, &errOut)
	now := noon
	c.Now = func() time.Time { now = now.Add(strangeAfter); return now }
	require.Equal(t, cli.ExitOK, run(t.Context(), c, []string{"submit", "-", "--wait", "--server", srv.URL}))
	require.NotContains(t, errOut.String(), "unknown", errOut.String())
	require.Contains(t, errOut.String(), "running: 1 of 1 task, ")
}

func TestListPages(t *testing.T) {
	t.Parallel()
	// 1,200 tasks: the cursor is the number of the next.
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		from, _ := strconv.Atoi(q.Get("cursor"))
		limit, err := strconv.Atoi(q.Get("limit"))
		if err != nil || limit > 1000 || q.Get("state") != "FAILED" {
			answer(w, 422, `{"detail":"no"}`)
			return
		}
		to := min(from+limit, 1200)
		page := make([]string, 0, limit)
		for i := from; i < to; i++ {
			page = append(page, fmt.Sprintf(`{"task_id":"%d"}`, i))
		}
		next := ""
		if to < 1200 {
			next = strconv.Itoa(to)
		}
		answer(w, 200, fmt.Sprintf(`{"tasks":[%s],"next":%q}`, strings.Join(page, ","), next))
	}))
	t.Cleanup(srv.Close)
	for flags, want := range map[string]int{"--all": 1200, "--limit 700": 700, "--limit 1200": 1200, "--limit 5000": 1200, "--limit 1": 1} {
		args := append([]string{"tasks", "list", "--server", srv.URL, "--state", "failed", "--json"}, strings.Fields(flags)...)
		got := lines(ok(t, args...))
		require.Len(t, got, want, flags)
		for i, line := range got {
			require.JSONEq(t, fmt.Sprintf(`{"task_id":"%d"}`, i), line)
		}
	}
}
