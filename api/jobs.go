package api

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/task"
)

// Job is how far a job is.
type Job struct {
	ID      string               `json:"id"`
	Tenant  string               `json:"tenant"`
	Total   int64                `json:"total" doc:"Tasks that are known so far."`
	Done    int64                `json:"done" doc:"Those that have ended."`
	Tasks   map[task.State]int64 `json:"tasks" doc:"By state."`
	Devices map[string]int64     `json:"devices,omitempty" doc:"Ended tasks by device."`
}

type jobInput struct {
	request
	headerParams
	ID string `path:"id" doc:"Id of the job."`
}

type jobOutput struct{ Body Job }

func (s *Server) routeJobs() {
	huma.Register(s.api, huma.Operation{OperationID: "get-job", Method: http.MethodGet, Path: "/v1/jobs/{id}", Tags: []string{"jobs"},
		Summary: "How far a job is", Errors: []int{400, 404, 503}}, s.job)
	s.plain(huma.Operation{OperationID: "job-results", Method: http.MethodGet, Path: "/v1/jobs/{id}/results", Tags: []string{"jobs"},
		Summary: "The results of a job so far, one JSON object a line, in the order of task ids",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: tenantHeader, In: "header", Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}, "application/jsonl", s.jobResults)
}

// plain registers a route whose answer is no JSON document, and describes it.
func (s *Server) plain(op huma.Operation, contentType string, h http.HandlerFunc) {
	op.Responses = map[string]*huma.Response{
		"200":     {Description: "OK", Content: map[string]*huma.MediaType{contentType: {}}},
		"default": {Description: "Error", Content: map[string]*huma.MediaType{problemType: {}}},
	}
	s.api.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc(op.Method+" "+op.Path, h)
}

func (s *Server) job(ctx context.Context, in *jobInput) (*jobOutput, error) {
	key, err := keyOf(in.r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	c, err := s.deps.Store.JobCounts(ctx, key.Tenant, key.ID)
	if err != nil {
		return nil, s.away(ctx, err)
	}
	j := Job{ID: key.ID, Tenant: key.Tenant, Tasks: c.ByState, Devices: c.ByDevice}
	for st, n := range c.ByState {
		j.Total += n
		if st.Terminal() {
			j.Done += n
		}
	}
	if j.Total == 0 {
		return nil, problem(http.StatusNotFound, "no task of such a job of this tenant is known; one that was submitted moments ago appears shortly")
	}
	return &jobOutput{j}, nil
}

// jobResults streams. An error before the first line is a problem document; one
// after it breaks the connection off, so that half is not taken for the whole.
func (s *Server) jobResults(w http.ResponseWriter, r *http.Request) {
	key, err := keyOf(r)
	if err != nil {
		writeProblem(w, r, asProblem(err))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	begun := false
	begin := func() {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/jsonl")
			w.WriteHeader(http.StatusOK)
		}
	}
	err = s.deps.Store.JobResults(ctx, key.Tenant, key.ID, func(res *task.Result) error {
		begin()
		return enc.Encode(res)
	})
	switch {
	case err != nil && !begun:
		writeProblem(w, r, asProblem(s.away(r.Context(), err)))
	case err != nil:
		s.log.Warn("the results of a job were broken off", "trace_id", traceOf(r.Context()), "error", err)
		panic(http.ErrAbortHandler)
	default:
		begin()
		if err := out.Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}
