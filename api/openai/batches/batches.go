// Package batches is the part of OpenAI's API that runs files: /v1/files and /v1/batches. A batch is a job whose file
// Batchyard stores; package feed runs it.
//
//	POST /v1/files ──▶ POST /v1/batches ──▶ GET /v1/batches/{id} … ──▶ GET /v1/files/{id}/content
//
// An upload is written to the blob store while it arrives, and a download read while it is sent, so memory does not
// depend on the size of a file.
package batches

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/jobs/feed"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/task"
)

// Producer writes events to Kafka.
type Producer interface {
	RecordNow(ctx context.Context, e task.Event, detail any) error
}

// Jobs says how far a job is.
type Jobs interface {
	Job(ctx context.Context, tenant, job string) (*task.Job, error)
}

// Deps is what the operations work with.
type Deps struct {
	Files        *files.Store
	Batches      *feed.Store
	Jobs         Jobs
	Producer     Producer
	Logger       *slog.Logger
	QueryTimeout time.Duration // of a query to Postgres
	BodyTimeout  time.Duration // for a client to send the next part of an upload
}

// API answers requests.
type API struct{ Deps }

// New returns the operations.
func New(d Deps) *API { return &API{d} }

// Routes returns the operations for the server.
func (a *API) Routes() []openai.Route {
	tags := []string{"openai"}
	op := func(id, method, path, summary string, params ...*huma.Param) huma.Operation {
		return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: tags, Parameters: params}
	}
	file := pathParam("file_id", "Id of the file.", "file-0af7651916cd43dd8448eb21")
	batch := pathParam("batch_id", "Id of the batch, which is that of its job.", "batch_0af7651916cd43dd8448eb21")
	after := queryParam("after", "Id of the last object of the previous page.", &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(128), Pattern: plainText})
	routes := []openai.Route{
		{Operation: op("upload-file", http.MethodPost, "/v1/files", "Upload the file of a batch: multipart/form-data with purpose (batch), file, and optionally expires_after[anchor] and expires_after[seconds]"), Handler: a.upload},
		{Operation: op("list-files", http.MethodGet, "/v1/files", "List files", after,
			queryParam("limit", "Files a page.", whole(1, maxFiles)), queryParam("order", "By creation.", oneOf("asc", "desc")),
			queryParam("purpose", "Only files for this.", &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(maxPurpose), Pattern: plainText})), Handler: a.listFiles},
		{Operation: op("get-file", http.MethodGet, "/v1/files/{file_id}", "Describe a file", file), Handler: a.file},
		{Operation: op("delete-file", http.MethodDelete, "/v1/files/{file_id}", "Delete a file", file), Handler: a.deleteFile},
		{Operation: op("get-file-content", http.MethodGet, "/v1/files/{file_id}/content", "Download a file", file), Handler: a.content},
		{Operation: op("create-batch", http.MethodPost, "/v1/batches", "Run every line of an uploaded file"), Handler: a.create},
		{Operation: op("list-batches", http.MethodGet, "/v1/batches", "List batches, newest first", after, queryParam("limit", "Batches a page.", whole(1, maxBatches))), Handler: a.list},
		{Operation: op("get-batch", http.MethodGet, "/v1/batches/{batch_id}", "Say how far a batch is", batch), Handler: a.batch},
		{Operation: op("cancel-batch", http.MethodPost, "/v1/batches/{batch_id}/cancel", "Cancel what has not finished of a batch", batch), Handler: a.cancel},
	}
	routes[0].Operation.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"multipart/form-data": {Schema: uploadSchema()}}}
	routes[5].Operation.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: createSchema()}}}
	return routes
}

func ptr[T any](v T) *T { return &v }

func pathParam(name, text, example string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Description: text, Schema: &huma.Schema{Type: huma.TypeString, MinLength: ptr(1), MaxLength: ptr(128), Pattern: plainText}, Example: example}
}

func queryParam(name, text string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: text, Schema: s}
}

func whole(from, to int) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Minimum: ptr(float64(from)), Maximum: ptr(float64(to))}
}

func oneOf(values ...any) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Enum: values} }

// fail answers with an error. Those that are not about the request are logged.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *openai.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, files.ErrNotFound):
		e = openai.NotFound("id", "No such file: this tenant has none with that id.")
	case errors.Is(err, feed.ErrNotFound):
		e = openai.NotFound("id", "No such batch: this tenant has none with that id.")
	case errors.Is(err, files.ErrStore):
		a.Logger.Error("the store of files does not work; check files.url", "trace_id", openai.CallerOf(r.Context()).TraceID, "error", err)
		e = &openai.Error{Status: http.StatusServiceUnavailable, Message: "The store of files does not answer; send the request again in a moment.", RetryAfter: 5}
	default:
		a.Logger.Warn("answering a request failed", "trace_id", openai.CallerOf(r.Context()).TraceID, "route", r.Pattern, "error", err)
		e = &openai.Error{Status: http.StatusServiceUnavailable, Message: "Postgres or Kafka does not answer; send the request again in a moment.", RetryAfter: 1}
	}
	openai.WriteError(w, e)
}

// within bounds a request's queries.
func (a *API) within(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), a.QueryTimeout)
}

// record writes an event that must not be missing: the request is answered with success only once Kafka has it.
func (a *API) record(r *http.Request, action task.Action, kind, id string, detail any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.QueryTimeout)
	defer cancel()
	c := openai.CallerOf(r.Context())
	e := task.Event{
		Action: action, Outcome: task.OutcomeOK, Tenant: c.Tenant, ActorType: task.ActorUser, ActorID: c.Origin.Actor,
		SourceAddr: c.Origin.Addr, UserAgent: c.Origin.UserAgent, TraceID: c.TraceID, ResourceType: kind, ResourceID: id,
	}
	if kind == "job" {
		e.JobID = id
	}
	return a.Producer.RecordNow(ctx, e, detail)
}

// listOf is a page of a list.
type listOf[T any] struct {
	Object  string  `json:"object"`
	Data    []T     `json:"data"`
	FirstID *string `json:"first_id"`
	LastID  *string `json:"last_id"`
	HasMore bool    `json:"has_more"`
}

// pageOf reads limit and after.
func pageOf(r *http.Request, usual, most int) (limit int, after string, err error) {
	q := r.URL.Query()
	limit = usual
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > most {
			return 0, "", openai.Invalid("limit", fmt.Sprintf("Invalid limit: send a number from 1 to %d.", most))
		}
	}
	return limit, q.Get("after"), nil
}
