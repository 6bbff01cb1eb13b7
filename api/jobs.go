package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// resultsType is the content type of results: one JSON object a line.
const resultsType = "application/jsonl"

// Job is the progress of a job.
type Job = task.Job

type jobOutput struct{ Body *Job }

// JobList is a page of jobs.
type JobList struct {
	Jobs []Job  `json:"jobs"`
	Next string `json:"next,omitempty" doc:"The cursor of the next page; missing on the last."`
}

type jobListOutput struct{ Body JobList }

// AnnouncedJob answers the announcement of a job.
type AnnouncedJob struct {
	ID     string `json:"job_id"`
	Tenant string `json:"tenant"`
	SHA256 string `json:"sha256" doc:"The fingerprint that the job's name is bound to."`
	Known  bool   `json:"known" doc:"The job was announced before, with the same fingerprint: its tasks are the same tasks."`
}

type announcedOutput struct{ Body AnnouncedJob }

func (s *Server) routeJobs() {
	const one = "/v1/jobs/{job_id}"
	tags := []string{"jobs"}
	huma.Register(s.api, answering(huma.Operation{OperationID: "announce-job", Method: http.MethodPut, Path: one, Tags: tags,
		Summary: "Announce a job before submitting its tasks",
		Description: "Binds the name of the job to the fingerprint of its file. 409 means that the name belongs to another file, and that no task of this one may be submitted under it. " +
			"Announcing the same file again changes nothing.",
		Parameters: params(jobParam, tenantParam)},
		http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable), s.announceJob)
	s.takesJSON(http.MethodPut, one, reflect.TypeFor[task.JobSpec](), map[string]any{
		"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "tasks": 100, "file": "night.jsonl"})
	huma.Register(s.api, answering(huma.Operation{OperationID: "get-job", Method: http.MethodGet, Path: one, Tags: tags,
		Summary: "Get the progress of a job", Parameters: params(jobParam, tenantParam)},
		http.StatusNotFound, http.StatusServiceUnavailable), s.job)
	instant := &huma.Schema{Type: huma.TypeString, Format: "date-time", Pattern: instants}
	huma.Register(s.api, answering(huma.Operation{OperationID: "list-jobs", Method: http.MethodGet, Path: "/v1/jobs", Tags: tags,
		Summary: "List jobs, newest first",
		Parameters: append(params(tenantParam),
			&huma.Param{Name: "state", In: "query", Description: "Only jobs in this state; small letters will do.", Schema: &huma.Schema{Type: huma.TypeString, Enum: anys(task.JobStates...)}, Example: string(task.JobRunning)},
			&huma.Param{Name: "prefix", In: "query", Description: "Only jobs whose id begins so.", Schema: idSchema(), Example: "nightly-"},
			&huma.Param{Name: "since", In: "query", Description: "Only jobs submitted then or later.", Schema: instant, Example: "2026-11-21T00:00:00Z"},
			&huma.Param{Name: "until", In: "query", Description: "Only jobs submitted before.", Schema: instant, Example: "2026-11-22T00:00:00Z"},
			&huma.Param{Name: "limit", In: "query", Description: "Jobs a page.", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(1.0), Maximum: ptr(float64(status.MaxLimit)), Default: status.DefaultLimit}, Example: 20},
			&huma.Param{Name: "cursor", In: "query", Description: "The `next` of the previous page, to go with the same filters.", Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(1024), Pattern: `^[A-Za-z0-9_-]+$`}})},
		http.StatusServiceUnavailable), s.jobs)
	s.describeJobs()
	s.routeJobControl()
	result := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[task.Result](), true, "Result")
	lines := &huma.Schema{Type: huma.TypeString, Description: "One Result a line.",
		Extensions: map[string]any{"contentMediaType": resultsType, "contentSchema": result}}
	s.plain(answering(huma.Operation{OperationID: "list-job-results", Method: http.MethodGet, Path: one + "/results", Tags: tags,
		Summary:     "Stream the results of a job",
		Description: "The results that there are so far, one JSON object a line, in the order of task ids. A job without results, or that is not known, has none. A connection that breaks off means that lines are missing.",
		Parameters:  params(jobParam, tenantParam),
		Responses:   map[string]*huma.Response{"200": {Description: "The results so far.", Content: map[string]*huma.MediaType{resultsType: {Schema: lines}}}},
	}, http.StatusServiceUnavailable), s.jobResults)
}

// describeJobs adds what the types cannot say.
func (s *Server) describeJobs() {
	parts := s.api.OpenAPI().Components.Schemas.Map()
	parts["Job"].Properties["state"].Enum = anys(task.JobStates...)
	in := parts["JobSpec"].Properties
	in["sha256"].Pattern, in["sha256"].Description = "^[0-9A-Fa-f]{64}$", "Fingerprint of the file: a SHA-256 over what its lines ask for, computed by the client."
	in["tasks"].Minimum, in["tasks"].Maximum = ptr(1.0), ptr(float64(1<<40))
	in["lines"].Minimum, in["lines"].Maximum = ptr(0.0), ptr(float64(1<<40))
	in["bad_lines"].Minimum, in["bad_lines"].Maximum = ptr(0.0), ptr(float64(1<<40))
	in["bytes"].Minimum, in["bytes"].Maximum = ptr(0.0), ptr(float64(1<<50))
	in["file"].MaxLength, in["file"].Pattern = ptr(task.MaxFileName), plainText
	in["format"].Enum = append(anys("", task.FormatOpenAI, task.FormatBatchyard, task.FormatMixed), nil)
	describeLabels(in["labels"])
	in["labels"].MaxProperties, in["labels"].Description = ptr(task.MaxLabels), "Labels of your own; at most 1,536 bytes together."
}

// plain registers a route whose response huma cannot write, and describes it.
func (s *Server) plain(op huma.Operation, h http.HandlerFunc) {
	s.api.OpenAPI().AddOperation(&op)
	s.mux.HandleFunc(op.Method+" "+op.Path, h)
}

// announceJob asks Postgres first, which knows every job but the newest, and then Redis, which
// decides between those that are announced at the same time.
func (s *Server) announceJob(ctx context.Context, in *request) (*announcedOutput, error) {
	key, err := keyOf(in.r, "job_id")
	if err != nil {
		return nil, err
	}
	spec := task.JobSpec{}
	if err := s.readObject(in, &spec); err != nil {
		return nil, err
	}
	spec.JobID, spec.Tenant = key.ID, key.Tenant
	if err := spec.Validate(); err != nil {
		return nil, unfit(err)
	}
	qctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	have, err := s.deps.Store.Job(qctx, key.Tenant, key.ID)
	switch {
	case err == nil && have.SHA256 != "" && have.SHA256 != hexOf(&spec):
		return nil, problem(http.StatusConflict, "%s", &task.JobConflictError{JobID: key.ID, SHA256: have.SHA256, SubmittedAt: *have.At})
	case err != nil && !errors.Is(err, status.ErrNoJob): // Redis still knows the newest jobs
		s.log.Warn("reading a job that is announced failed; older jobs of the same name go unnoticed", "trace_id", traceOf(ctx), "error", err)
	}
	ctx, stop := context.WithTimeout(ctx, s.cfg.SubmitTimeout)
	defer stop()
	err = s.deps.Producer.AnnounceJob(ctx, &spec, originOf(in.r, key.Tenant))
	var other *task.JobConflictError
	switch {
	case errors.As(err, &other):
		return nil, problem(http.StatusConflict, "%s", other)
	case err != nil:
		s.log.Warn("writing the announcement of a job to Kafka failed", "trace_id", traceOf(ctx), "error", err)
		return nil, later("Kafka did not answer in time: the job may or may not be announced; send the request again")
	}
	return &announcedOutput{AnnouncedJob{key.ID, key.Tenant, hexOf(&spec), have != nil && have.SHA256 != ""}}, nil
}

// hexOf returns the fingerprint of a valid announcement in small letters.
func hexOf(s *task.JobSpec) string { return fmt.Sprintf("%x", s.Fingerprint()) }

// findJob returns the job of the path; the error is a problem.
func (s *Server) findJob(ctx context.Context, r *http.Request) (task.Key, *task.Job, error) {
	key, err := keyOf(r, "job_id")
	if err != nil {
		return key, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	j, err := s.deps.Store.Job(ctx, key.Tenant, key.ID)
	switch {
	case errors.Is(err, status.ErrNoJob):
		// An error of Redis does not matter here: Postgres has answered.
		if recent, ok, err := s.deps.Producer.RecentJob(ctx, key); err == nil && ok {
			return key, recent, nil
		}
		return key, nil, problem(http.StatusNotFound, "this tenant has no such job; one that was not announced appears shortly after the first of its tasks")
	case err != nil:
		return key, nil, s.postgresDown(ctx, err)
	}
	return key, j, nil
}

func (s *Server) job(ctx context.Context, in *request) (*jobOutput, error) {
	_, j, err := s.findJob(ctx, in.r)
	if err != nil {
		return nil, err
	}
	return &jobOutput{j}, nil
}

// jobFilterOf reads the query of a list of jobs.
func jobFilterOf(in *request) (f status.JobFilter, err error) {
	tenant, _, err := tenantOf(in.r)
	if err != nil {
		return f, err
	}
	f = status.JobFilter{Tenant: tenant, Prefix: in.query("prefix"), Cursor: in.query("cursor"), Limit: status.DefaultLimit}
	if state := in.query("state"); state != "" {
		if f.State, err = task.ParseJobState(clipName(state)); err != nil {
			var fe *task.FieldError
			errors.As(err, &fe)
			return f, queryProblem("state", fe.Problem+"; "+fe.Remedy)
		}
	}
	if f.Prefix != "" {
		if bad := badName(f.Prefix); bad != "" {
			return f, queryProblem("prefix", bad+": send 1 to 128 printable characters")
		}
	}
	for name, at := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := in.query(name); text != "" {
			if *at, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return f, queryProblem(name, "not a time: send one like 2026-11-21T00:00:00Z")
			}
		}
	}
	if limit := in.query("limit"); limit != "" {
		f.Limit, err = strconv.Atoi(limit)
		if err != nil || f.Limit < 1 || f.Limit > status.MaxLimit {
			return f, queryProblem("limit", fmt.Sprintf("not a number from 1 to %d: send one, or leave it out for %d", status.MaxLimit, status.DefaultLimit))
		}
	}
	return f, nil
}

func (s *Server) jobs(ctx context.Context, in *request) (*jobListOutput, error) {
	f, err := jobFilterOf(in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	jobs, next, err := s.deps.Store.Jobs(ctx, f)
	switch {
	case errors.Is(err, status.ErrBadCursor):
		return nil, queryProblem("cursor", "invalid cursor: send the `next` of the previous page, with the same filters")
	case err != nil:
		return nil, s.postgresDown(ctx, err)
	}
	if jobs == nil {
		jobs = []Job{}
	}
	return &jobListOutput{JobList{Jobs: jobs, Next: next}}, nil
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
	enc := json.NewEncoder(text.JSONLines(out))
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
