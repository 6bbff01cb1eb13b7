package batchyard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/batchyard/batchyard/task"
)

// jobPoll is how often WaitJob asks.
const jobPoll = 500 * time.Millisecond

// JobProgress is how far a job is. A job is every task of the tenant with the same
// JobID. If it was announced, see [Client.AnnounceJob], the server knows how many
// tasks it has.
type JobProgress struct {
	task.Job

	answered
}

// Job says how far a job is. It is [ErrNotFound] until the job is recorded, which
// takes a moment after its announcement or its first submit.
func (c *Client) Job(ctx context.Context, jobID string) (*JobProgress, error) {
	path, err := pathOf("jobs", jobID, "")
	if err != nil {
		return nil, err
	}
	var j JobProgress
	if err := c.do(ctx, call{method: http.MethodGet, path: path}, &j); err != nil {
		return nil, err
	}
	return &j, nil
}

// AnnounceJob says what a job is before its tasks are submitted, and binds its name
// to the fingerprint of its file. It is [ErrConflict] when the name belongs to
// another file: choose another name. known reports that the same file was announced
// before, so its tasks are the same tasks.
func (c *Client) AnnounceJob(ctx context.Context, spec *task.JobSpec) (known bool, err error) {
	path, err := pathOf("jobs", spec.JobID, "")
	if err != nil {
		return false, err
	}
	var answer struct {
		Known bool `json:"known"`
	}
	err = c.do(ctx, call{method: http.MethodPut, path: path, body: spec}, &answer)
	return answer.Known, err
}

// JobFilter chooses jobs. The zero value is all of the tenant's.
type JobFilter struct {
	State  task.JobState // empty: any
	Prefix string        // of the job's id
	Since  time.Time     // submitted then or later; zero: any time
	Until  time.Time     // submitted before; zero: any time
	Limit  int           // of one page, at most 1,000; 0: 50
	Cursor string        // the Next of the page before, with the same filter; empty: the first page
}

// JobPage is a part of a list of jobs.
type JobPage struct {
	Jobs []JobProgress
	Next string // the cursor of the next page; empty on the last
}

// UnmarshalJSON reads a page as the server sends it.
func (p *JobPage) UnmarshalJSON(b []byte) error {
	var wire struct {
		Jobs []json.RawMessage `json:"jobs"`
		Next string            `json:"next"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return err
	}
	var err error
	p.Next = wire.Next
	p.Jobs, err = readAll[JobProgress](wire.Jobs)
	return err
}

// JobPage returns one page of jobs, newest first.
func (c *Client) JobPage(ctx context.Context, f JobFilter) (*JobPage, error) {
	query := url.Values{}
	for name, value := range map[string]string{"state": string(f.State), "prefix": f.Prefix, "cursor": f.Cursor} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if f.Limit != 0 {
		query.Set("limit", strconv.Itoa(f.Limit))
	}
	var p JobPage
	if err := c.do(ctx, call{method: http.MethodGet, path: "/v1/jobs", query: query}, &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// CancelJob asks for every task of a job to be stopped that has not finished, page
// by page, and returns how many it asked. It is [ErrConflict] when the job has
// finished already. Tasks that are submitted or recorded later still run; call it
// again for them.
func (c *Client) CancelJob(ctx context.Context, jobID string) (tasks int64, err error) {
	path, err := pathOf("jobs", jobID, "/cancel")
	if err != nil {
		return 0, err
	}
	for cursor := ""; ; {
		q := call{method: http.MethodPost, path: path}
		if cursor != "" {
			q.query = url.Values{"cursor": {cursor}}
		}
		var page struct {
			Cancelled int64  `json:"cancelled"`
			Next      string `json:"next"`
		}
		if err := c.do(ctx, q, &page); err != nil {
			return tasks, err
		}
		tasks += page.Cancelled
		if cursor = page.Next; cursor == "" {
			return tasks, nil
		}
	}
}

// JobCause explains what a group of a job's unfinished tasks waits for.
type JobCause struct {
	Cause    string   `json:"cause"` // stays the same while only the figures change
	Tasks    int64    `json:"tasks"`
	TaskID   string   `json:"task_id"` // the one that is explained
	Sentence string   `json:"sentence"`
	Devices  []string `json:"devices,omitempty"` // a line for each device, at most twenty, if none of them can run the task
}

// WhyJob explains what the unfinished tasks of a job wait for, the largest groups
// first, as [Client.Why] does for one task.
func (c *Client) WhyJob(ctx context.Context, jobID string) ([]JobCause, error) {
	path, err := pathOf("jobs", jobID, "/why")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Causes []JobCause `json:"causes"`
	}
	if err := c.do(ctx, call{method: http.MethodGet, path: path}, &answer); err != nil {
		return nil, err
	}
	return answer.Causes, nil
}

// WaitJob returns how a job stands once at least this many of its tasks have
// ended. It waits as long as the context lets it; then the error is the context's.
func (c *Client) WaitJob(ctx context.Context, jobID string, tasks int) (*JobProgress, error) {
	for {
		j, err := c.Job(ctx, jobID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if err == nil && j.Done >= int64(tasks) {
			return j, nil
		}
		if err := sleep(ctx, jobPoll); err != nil {
			return nil, fmt.Errorf("waiting for %d tasks of job %s: %w", tasks, jobID, err)
		}
	}
}

// Results yields the results that a job has so far, in the order of their task
// ids, as the server streams them: a job of any size takes the memory of one
// result. An error is the last thing it yields, so a loop that saw none has seen
// all. The stream cannot be resumed; after [ErrUnavailable], call Results again.
func (c *Client) Results(ctx context.Context, jobID string) iter.Seq2[*task.Result, error] {
	return func(yield func(*task.Result, error) bool) {
		path, err := pathOf("jobs", jobID, "/results")
		if err != nil {
			yield(nil, err)
			return
		}
		if err := c.stream(ctx, path, func(r *task.Result) bool { return yield(r, nil) }); err != nil {
			yield(nil, fmt.Errorf("reading the results of job %s: %w", jobID, err))
		}
	}
}

// errSilent is why a stream was cut off.
var errSilent = fmt.Errorf("nothing came for %s", requestTimeout)

// watch ends a stream's context when nothing comes: there may be any number of
// results, but not any time between two of them.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func newWatch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancelCause(ctx)
	return &watch{ctx, cancel, time.AfterFunc(requestTimeout, func() { cancel(errSilent) })}
}

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause says why err ended the stream: the silence, or err itself.
func (w *watch) cause(err error) error {
	if errors.Is(context.Cause(w.ctx), errSilent) {
		return errSilent
	}
	return err
}

// stream calls yield with each result until it returns false.
func (c *Client) stream(ctx context.Context, path string, yield func(*task.Result) bool) error {
	var resp *http.Response
	var w *watch
	err := c.retrying(ctx, func() (err error) {
		w = newWatch(ctx)
		resp, err = c.send(w.ctx, call{method: http.MethodGet, path: path}, nil) //nolint:bodyclose // it is closed below
		if err == nil {
			return nil
		}
		defer w.end()
		var away *ConnectionError
		if errors.As(err, &away) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			away.Err = w.cause(away.Err)
		}
		return err
	})
	if err != nil {
		return err
	}
	defer w.end()
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or is not wanted
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 64<<10), maxResult)
	for lines.Scan() {
		w.timer.Stop() // the time that the caller takes does not count
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) > 0 {
			var r task.Result
			if err := json.Unmarshal(line, &r); err != nil {
				if lines.Err() != nil {
					break // half a line is what was left when the connection broke
				}
				return fmt.Errorf("the server at %s sent what is not a result: %w; is the address right?", c.base, err)
			}
			if !yield(&r) {
				return nil
			}
		}
		w.timer.Reset(requestTimeout)
	}
	switch err := lines.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("a result is larger than %d MiB", maxResult>>20)
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return &ConnectionError{Server: c.base, Err: w.cause(err), reading: true}
	}
}
