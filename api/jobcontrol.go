package api

import (
	"context"
	"encoding/base64"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sync/errgroup"

	"github.com/batchyard/batchyard/task"
)

// Bounds of one request to cancel a job.
const (
	cancelPage        = 500
	cancelConcurrency = 16
)

// maxCauses bounds how many groups of a job's tasks are explained.
const maxCauses = 5

// unfinished are the states in which a task can be cancelled.
var unfinished = []task.State{task.Pending, task.Assigned, task.Running}

// CancelledJob answers a request to cancel a job.
type CancelledJob struct {
	ID        string `json:"job_id"`
	Tenant    string `json:"tenant"`
	Cancelled int64  `json:"cancelled" minimum:"0" doc:"Tasks of this page that end as CANCELLED, unless another result comes first."`
	Next      string `json:"next,omitempty" doc:"The cursor of the next page; missing once every unfinished task was asked to stop."`
}

type cancelledJobOutput struct{ Body CancelledJob }

// JobWhy explains what the unfinished tasks of a job wait for.
type JobWhy struct {
	ID     string     `json:"job_id"`
	Tenant string     `json:"tenant"`
	Causes []JobCause `json:"causes" doc:"The largest groups of unfinished tasks, at most five."`
}

// JobCause explains one group of tasks.
type JobCause struct {
	Cause    string   `json:"cause" doc:"Stays the same while only the figures change."`
	Tasks    int64    `json:"tasks" doc:"Tasks in the same state for the same model and device."`
	TaskID   string   `json:"task_id" doc:"The one that is explained."`
	Sentence string   `json:"sentence"`
	Devices  []string `json:"devices,omitempty" doc:"A line for each device, at most twenty, if none of them can run the task."`
}

type jobWhyOutput struct{ Body JobWhy }

func (s *Server) routeJobControl() {
	const one = "/v1/jobs/{job_id}"
	tags := []string{"jobs"}
	huma.Register(s.api, answering(huma.Operation{OperationID: "cancel-job", Method: http.MethodPost, Path: one + "/cancel", Tags: tags,
		Summary: "Cancel what has not finished of a job", DefaultStatus: http.StatusAccepted,
		Description: "One page of tasks: while the answer has a `next`, send the request again with it. Tasks that are submitted later still run. 409 means that the job has finished already.",
		Parameters: append(params(jobParam, tenantParam),
			&huma.Param{Name: "cursor", In: "query", Description: "The `next` of the previous page.", Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(1024), Pattern: `^[A-Za-z0-9_-]+$`}})},
		http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable), s.cancelJob)
	huma.Register(s.api, answering(huma.Operation{OperationID: "explain-job", Method: http.MethodGet, Path: one + "/why", Tags: tags,
		Summary: "Explain what the unfinished tasks of a job wait for", Parameters: params(jobParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.jobWhy)
}

func (s *Server) cancelJob(ctx context.Context, in *request) (*cancelledJobOutput, error) {
	key, j, err := s.findJob(ctx, in.r)
	if err != nil {
		return nil, err
	}
	after, err := base64.RawURLEncoding.DecodeString(in.query("cursor"))
	if err != nil || len(after) > 0 && badName(string(after)) != "" {
		return nil, queryProblem("cursor", "invalid cursor: send the `next` of the previous page")
	}
	if len(after) == 0 {
		if j.Ended() {
			return nil, problem(http.StatusConflict, "the job has already finished")
		}
		e := operatorEvent(in.r, key.Tenant, task.JobCancelRequested, traceOf(ctx))
		e.ResourceType, e.ResourceID, e.JobID = "job", key.ID, key.ID
		if err := s.recordNow(ctx, e, map[string]any{"done": j.Done, "known": j.Known}); err != nil {
			return nil, err
		}
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	rows, err := s.deps.Store.JobTasks(qctx, key, unfinished, string(after), cancelPage)
	if err != nil {
		return nil, s.postgresDown(ctx, err)
	}
	out := CancelledJob{ID: key.ID, Tenant: key.Tenant}
	var asked atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cancelConcurrency)
	for i := range rows {
		g.Go(func() error {
			st := statusOfRow(&rows[i])
			did, err := s.cancelOnce(gctx, in.r, &st)
			if did {
				asked.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if out.Cancelled = asked.Load(); len(rows) == cancelPage {
		out.Next = base64.RawURLEncoding.EncodeToString([]byte(rows[len(rows)-1].ID))
	}
	return &cancelledJobOutput{out}, nil
}

// cancelOnce cancels an unfinished task unless it was cancelled before: Postgres learns of a cancel
// a little later, and a second one would be recorded as a second result.
func (s *Server) cancelOnce(ctx context.Context, r *http.Request, st *Status) (did bool, err error) {
	key := task.Key{Tenant: st.Tenant, ID: st.ID}
	if overrides, err := s.deps.Overrides.Get(ctx, key); err == nil && overrides[0].Cancelled {
		return false, nil
	}
	return true, s.cancelTask(ctx, r, st, nil)
}

func (s *Server) jobWhy(ctx context.Context, in *request) (*jobWhyOutput, error) {
	key, _, err := s.findJob(ctx, in.r)
	if err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	groups, err := s.deps.Store.JobGroups(qctx, key, maxCauses)
	if err != nil {
		return nil, s.postgresDown(ctx, err)
	}
	out := JobWhy{ID: key.ID, Tenant: key.Tenant, Causes: make([]JobCause, len(groups))}
	var failed sync.Once
	var problem error
	var wg sync.WaitGroup
	for i, group := range groups {
		wg.Go(func() {
			w, err := s.explain(ctx, task.Key{Tenant: key.Tenant, ID: group.TaskID})
			if err != nil {
				failed.Do(func() { problem = err })
				return
			}
			out.Causes[i] = JobCause{Cause: w.Cause(), Tasks: group.Tasks, TaskID: group.TaskID, Sentence: w.Sentence, Devices: w.Lines()}
		})
	}
	wg.Wait()
	if problem != nil {
		return nil, problem
	}
	return &jobWhyOutput{out}, nil
}
