package api

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/task"
)

// resultsType is the content type of results: one JSON object a line.
const resultsType = "application/jsonl"

// Job is the progress of a job.
type Job struct {
	ID      string               `json:"job_id"`
	Tenant  string               `json:"tenant"`
	Total   int64                `json:"total" minimum:"1" doc:"Tasks known so far."`
	Done    int64                `json:"done" minimum:"0" doc:"Tasks in a terminal state."`
	Tasks   map[task.State]int64 `json:"tasks" doc:"Tasks by state."`
	Devices map[string]int64     `json:"devices,omitempty" doc:"Finished tasks by device_id."`
}

type jobOutput struct{ Body Job }

func (s *Server) routeJobs() {
	huma.Register(s.api, answering(huma.Operation{OperationID: "get-job", Method: http.MethodGet, Path: "/v1/jobs/{job_id}", Tags: []string{"jobs"},
		Summary: "Get the progress of a job", Parameters: params(jobParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.job)
	result := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[task.Result](), true, "Result")
	lines := &huma.Schema{Type: huma.TypeString, Description: "One Result a line.",
		Extensions: map[string]any{"contentMediaType": resultsType, "contentSchema": result}}
	s.plain(answering(huma.Operation{OperationID: "list-job-results", Method: http.MethodGet, Path: "/v1/jobs/{job_id}/results", Tags: []string{"jobs"},
		Summary:     "Stream the results of a job",
		Description: "The results that there are so far, one JSON object a line, in the order of task ids. A job without results, or that is not known, has none. A connection that breaks off means that lines are missing.",
		Parameters:  params(jobParam, tenantParam),
		Responses:   map[string]*huma.Response{"200": {Description: "The results so far.", Content: map[string]*huma.MediaType{resultsType: {Schema: lines}}}},
	}, http.StatusServiceUnavailable), s.jobResults)
}

// plain registers a route whose response huma cannot write, and describes it.
func (s *Server) plain(op huma.Operation, h http.HandlerFunc) {
	s.api.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc(op.Method+" "+op.Path, h)
}

func (s *Server) job(ctx context.Context, in *request) (*jobOutput, error) {
	key, err := keyOf(in.r, "job_id")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	c, err := s.deps.Store.JobCounts(ctx, key.Tenant, key.ID)
	if err != nil {
		return nil, s.postgresDown(ctx, err)
	}
	j := Job{ID: key.ID, Tenant: key.Tenant, Tasks: c.ByState, Devices: c.ByDevice}
	for st, n := range c.ByState {
		j.Total += n
		if st.Terminal() {
			j.Done += n
		}
	}
	if j.Total == 0 {
		return nil, problem(http.StatusNotFound, "this tenant has no task of such a job; a job submitted moments ago appears shortly")
	}
	return &jobOutput{j}, nil
}

// jobResults streams. An error before the first line is a problem document; a later
// one breaks the connection, so that a part is not taken for the whole.
func (s *Server) jobResults(w http.ResponseWriter, r *http.Request) {
	key, err := keyOf(r, "job_id")
	if err != nil {
		writeProblem(w, r, asProblem(err))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	started := false
	start := func() {
		if !started {
			started = true
			w.Header().Set("Content-Type", resultsType)
			w.WriteHeader(http.StatusOK)
		}
	}
	err = s.deps.Store.JobResults(ctx, key.Tenant, key.ID, func(res *task.Result) error {
		start()
		return enc.Encode(res)
	})
	switch {
	case err != nil && !started:
		writeProblem(w, r, asProblem(s.postgresDown(r.Context(), err)))
	case err != nil:
		s.log.Warn("streaming the results of a job failed", "trace_id", traceOf(r.Context()), "error", err)
		panic(http.ErrAbortHandler)
	default:
		start()
		if err := out.Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}
