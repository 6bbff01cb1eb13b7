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
	"time"

	"github.com/batchyard/batchyard/task"
)

// jobPoll is how often WaitJob asks.
const jobPoll = 500 * time.Millisecond

// JobProgress is how far a job is. A job is every task of the tenant with the same
// JobID; the server does not know how many are still to be submitted.
type JobProgress struct {
	JobID   string               `json:"job_id"`
	Tenant  string               `json:"tenant"`
	Total   int64                `json:"total"`             // tasks that are known so far
	Done    int64                `json:"done"`              // those that have ended
	Tasks   map[task.State]int64 `json:"tasks"`             // how many are in each state
	Devices map[string]int64     `json:"devices,omitempty"` // how many ended on each device, by its id

	answered
}

// Job says how far a job is. It is [ErrNotFound] until the first task is recorded,
// which takes a moment after its submit.
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
