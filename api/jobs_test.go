package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/stream"
	"github.com/batchyard/batchyard/task"
)

var (
	sumA = strings.Repeat("a1", 32)
	sumB = strings.Repeat("b2", 32)
)

func announcement(sum string) string {
	return fmt.Sprintf(`{"sha256":%q,"tasks":3,"file":"n.jsonl"}`, sum)
}

// A job's name belongs to one file: Redis says so at once, and Postgres for good.
func TestAnnounceJob(t *testing.T) {
	b := start(t, Config{})
	a := b.do(t, "PUT", "/v1/jobs/daily", announcement(strings.ToUpper(sumA)), "User-Agent", "test/1")
	require.Equal(t, 200, a.status, a.body)
	require.JSONEq(t, `{"job_id":"daily","tenant":"default","sha256":"`+sumA+`","known":false}`, a.body)
	es := b.events(t, task.JobSubmitted)
	require.Len(t, es, 1)
	require.Equal(t, []string{"daily", "default", "test/1", "job"}, []string{es[0].JobID, es[0].Tenant, es[0].UserAgent, es[0].ResourceType})
	require.JSONEq(t, `{"sha256":"`+sumA+`","tasks":3,"file":"n.jsonl"}`, string(es[0].Detail))

	var j task.Job
	b.do(t, "GET", "/v1/jobs/daily", "").into(t, &j)
	require.Equal(t, []any{task.JobRunning, int64(3), int64(0)}, []any{j.State, j.Total, j.Known}, "Postgres has not heard of it: it is there all the same")

	// Before Postgres knows it: another process is refused by Redis. The same file is not.
	p := b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB)).problem(t, 409)
	require.Contains(t, p.Detail, "job daily is another file (sha256 "+sumA+", submitted 20")
	require.Contains(t, p.Detail, "choose another name (--job)")
	require.Equal(t, 200, b.do(t, "PUT", "/v1/jobs/daily", announcement(sumA)).status)
	require.Equal(t, 200, b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB), tenantHeader, "acme").status, "another tenant's job")
	require.Len(t, b.events(t, task.JobSubmitted), 4, "refused ones are recorded too")

	// Redis has forgotten it: Postgres knows.
	b.redis.FlushAll()
	at := time.Date(2026, 11, 20, 22, 0, 5, 0, time.UTC)
	b.store.announce("daily", sumA, 3, at)
	p = b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB)).problem(t, 409)
	require.Contains(t, p.Detail, "submitted 2026-11-20T22:00:05Z")
	a = b.do(t, "PUT", "/v1/jobs/daily", announcement(sumA))
	require.Contains(t, a.body, `"known":true`)

	// With one of the two away, the other decides; with both, work continues.
	b.store.goAway(errors.New("away"))
	b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB)).problem(t, 409)
	b.redis.Close()
	require.Equal(t, 200, b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB)).status)
	b.store.goAway(nil)
	b.do(t, "PUT", "/v1/jobs/daily", announcement(sumB)).problem(t, 409)
	require.Empty(t, b.records(t, stream.TasksNormal))
}

func TestAnnouncementsThatAreRefused(t *testing.T) {
	b := start(t, Config{})
	for body, pointer := range map[string]string{
		`{"tasks":3}`:                                                                           "/sha256",
		`{"sha256":"abc","tasks":3}`:                                                            "/sha256",
		`{"sha256":"` + sumA + `"}`:                                                             "/tasks",
		`{"sha256":"` + sumA + `","tasks":0}`:                                                   "/tasks",
		`{"sha256":"` + sumA + `","tasks":"1"}`:                                                 "/tasks",
		`{"sha256":"` + sumA + `","tasks":1,"format":"csv"}`:                                    "/format",
		`{"sha256":"` + sumA + `","tasks":1,"lines":-1}`:                                        "/lines",
		`{"sha256":"` + sumA + `","tasks":1,"callback":{"url":"ftp://x"}}`:                      "/callback/url",
		`{"sha256":"` + sumA + `","tasks":1,"file":"` + strings.Repeat("x", 300) + `"}`:         "/file",
		`{"sha256":"` + sumA + `","tasks":1,"labels":{"a":"` + strings.Repeat("x", 513) + `"}}`: "/labels/a",
		`{"sha256":"` + sumA + `","tasks":1,"colour":"x"}`:                                      "/colour",
		`{"sha256":"` + sumA + `","tasks":1,"labels":{"":"x"}}`:                                 "/labels",
	} {
		p := b.do(t, "PUT", "/v1/jobs/j", body).problem(t, 422)
		require.NotEmpty(t, p.Errors, body)
		require.Equal(t, pointer, p.Errors[0].Pointer, body)
	}
	b.do(t, "PUT", "/v1/jobs/"+strings.Repeat("x", 129), announcement(sumA)).problem(t, 400)
	require.Empty(t, b.made(t, task.JobSubmitted))
}

// The URL of a job's callback reaches the recorder, and not the audit log.
func TestAnnouncedCallback(t *testing.T) {
	b := start(t, Config{})
	body := strings.TrimSuffix(announcement(sumA), "}") + `,"callback":{"url":"https://h.example/x?key=secret"}}`
	require.Equal(t, 200, b.do(t, "PUT", "/v1/jobs/j", body).status)
	e := b.events(t, task.JobSubmitted)[0]
	require.Equal(t, "https://h.example/x?key=secret", e.CallbackURL)
	require.NotContains(t, string(e.Detail), "secret")
	require.Contains(t, string(e.Detail), `"callback_host":"h.example"`)
}

func TestListJobs(t *testing.T) {
	b := start(t, Config{})
	require.JSONEq(t, `{"jobs":[]}`, b.do(t, "GET", "/v1/jobs", "").body)
	at := time.Date(2026, 11, 20, 22, 0, 0, 0, time.UTC)
	b.store.announce("nightly-1", sumA, 3, at)
	for query, want := range map[string]int{"": 1, "state=running": 1, "state=FINISHED": 0, "prefix=nightly-": 1, "prefix=x": 0,
		"since=2026-11-20T22:00:00Z": 1, "since=2026-11-20T22:00:01Z": 0, "until=2026-11-20T22:00:00Z": 0, "until=2026-11-20T23:00:01%2B01:00&limit=1": 1} {
		var l JobList
		a := b.do(t, "GET", "/v1/jobs?"+query, "")
		require.Equal(t, 200, a.status, a.body)
		a.into(t, &l)
		require.Len(t, l.Jobs, want, query)
	}
	for query, pointer := range map[string]string{"state=DONE": "state", "prefix=%00": "prefix", "since=yesterday": "since", "limit=0": "limit", "cursor=bad": "cursor", "stat=x": "stat"} {
		p := b.do(t, "GET", "/v1/jobs?"+query, "").problem(t, 422)
		require.Equal(t, pointer, p.Errors[0].Pointer, query)
	}
	b.store.goAway(errors.New("away"))
	b.do(t, "GET", "/v1/jobs", "").problem(t, 503)
}

// Every task that has not finished is cancelled once, page by page.
func TestCancelJob(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "POST", "/v1/jobs/j/cancel", "").problem(t, 404)
	for i := range cancelPage + 3 {
		b.store.set(status.TaskRow{Tenant: "default", ID: fmt.Sprintf("t%04d", i), Job: "j", State: unfinished[i%3]})
	}
	b.store.set(status.TaskRow{Tenant: "default", ID: "done", Job: "j", State: task.Success})
	var page CancelledJob
	a := b.do(t, "POST", "/v1/jobs/j/cancel", "")
	require.Equal(t, 202, a.status, a.body)
	a.into(t, &page)
	require.EqualValues(t, cancelPage, page.Cancelled)
	require.NotEmpty(t, page.Next)
	require.Len(t, b.made(t, task.JobCancelRequested), 1)
	a = b.do(t, "POST", "/v1/jobs/j/cancel?cursor="+page.Next, "")
	page = CancelledJob{}
	a.into(t, &page)
	require.EqualValues(t, 3, page.Cancelled)
	require.Empty(t, page.Next)
	require.Len(t, b.records(t, stream.Results), cancelPage+3)

	// Postgres does not know of it yet, and no task gets a second result.
	b.do(t, "POST", "/v1/jobs/j/cancel", "").into(t, &page)
	require.Zero(t, page.Cancelled)
	require.Len(t, b.records(t, stream.Results), cancelPage+3)
	b.do(t, "POST", "/v1/jobs/j/cancel?cursor=!", "").problem(t, 422)

	b.store.set(status.TaskRow{Tenant: "default", ID: "only", Job: "over", State: task.Failed})
	b.do(t, "POST", "/v1/jobs/over/cancel", "").problem(t, 409)
	b.store.goAway(errors.New("away"))
	b.do(t, "POST", "/v1/jobs/j/cancel", "").problem(t, 503)
}

func TestWhyAJobWaits(t *testing.T) {
	b := start(t, Config{})
	b.do(t, "GET", "/v1/jobs/j/why", "").problem(t, 404)
	require.Equal(t, 200, b.do(t, "POST", "/v1/devices/d/heartbeat", `{"url":"http://h","models":["other"]}`).status)
	b.store.set(status.TaskRow{Tenant: "default", ID: "a", Job: "j", Model: "m", State: task.Pending, Priority: task.Normal})
	b.store.tell(task.Event{TaskID: "a", Action: task.TaskQueued, Time: time.Now()})
	b.store.set(status.TaskRow{Tenant: "default", ID: "b", Job: "j", Model: "m", State: task.Success})
	var w JobWhy
	a := b.do(t, "GET", "/v1/jobs/j/why", "")
	require.Equal(t, http.StatusOK, a.status, a.body)
	a.into(t, &w)
	require.Len(t, w.Causes, 1)
	require.Equal(t, []any{"a", int64(7), "unable m model"}, []any{w.Causes[0].TaskID, w.Causes[0].Tasks, w.Causes[0].Cause})
	require.Contains(t, w.Causes[0].Sentence, "none of the 1 device can run it: 1 does not serve its model m, but other")
	require.Contains(t, whyOf(t, b, "a").Sentence, "1 does not serve its model m, but other", "the same as for one task")
	b.redis.Close()
	b.do(t, "GET", "/v1/jobs/j/why", "").problem(t, 503)
}
