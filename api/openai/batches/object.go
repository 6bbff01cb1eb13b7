package batches

import (
	"context"
	"errors"
	"net/http"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/jobs/feed"
	"github.com/batchyard/batchyard/status"
	"github.com/batchyard/batchyard/task"
)

// maxBatches is the largest page of batches, usualBatches the usual one.
const (
	maxBatches   = 100
	usualBatches = 20
)

// batchObject is a batch in OpenAI's API.
type batchObject struct {
	ID               string            `json:"id"`
	Object           string            `json:"object"`
	Endpoint         string            `json:"endpoint"`
	Model            *string           `json:"model"`
	Errors           *problemList      `json:"errors"`
	InputFileID      string            `json:"input_file_id"`
	CompletionWindow string            `json:"completion_window"`
	Status           feed.Status       `json:"status"`
	OutputFileID     *string           `json:"output_file_id"`
	ErrorFileID      *string           `json:"error_file_id"`
	CreatedAt        int64             `json:"created_at"`
	InProgressAt     *int64            `json:"in_progress_at"`
	ExpiresAt        *int64            `json:"expires_at"`
	FinalizingAt     *int64            `json:"finalizing_at"`
	CompletedAt      *int64            `json:"completed_at"`
	FailedAt         *int64            `json:"failed_at"`
	ExpiredAt        *int64            `json:"expired_at"`
	CancellingAt     *int64            `json:"cancelling_at"`
	CancelledAt      *int64            `json:"cancelled_at"`
	Counts           counts            `json:"request_counts"`
	Usage            usage             `json:"usage"`
	Metadata         map[string]string `json:"metadata"`
}

type problemList struct {
	Object string         `json:"object"`
	Data   []feed.Problem `json:"data"`
}

type counts struct {
	Total     int64 `json:"total"`
	Completed int64 `json:"completed"`
	Failed    int64 `json:"failed"`
}

type usage struct {
	InputTokens        int64         `json:"input_tokens"`
	InputTokensDetails inputDetails  `json:"input_tokens_details"`
	OutputTokens       int64         `json:"output_tokens"`
	OutputDetails      outputDetails `json:"output_tokens_details"`
	TotalTokens        int64         `json:"total_tokens"`
}

type inputDetails struct {
	CachedTokens int64 `json:"cached_tokens"`
}

type outputDetails struct {
	ReasoningTokens int64 `json:"reasoning_tokens"`
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// object describes a batch. While its tasks run they are counted; what was counted last is in its row.
func (a *API) object(ctx context.Context, j *feed.Job) (*batchObject, error) {
	b := &batchObject{
		ID: j.ID, Object: "batch", Endpoint: j.Endpoint, Model: orNull(j.Model), InputFileID: j.Input, CompletionWindow: j.Window, Status: j.Status,
		OutputFileID: orNull(j.Output), ErrorFileID: orNull(j.ErrorFile), CreatedAt: j.CreatedAt.Unix(), InProgressAt: unix(j.InProgress), ExpiresAt: unix(&j.ExpiresAt),
		FinalizingAt: unix(j.Finalizing), CompletedAt: unix(j.CompletedT), FailedAt: unix(j.FailedAt), ExpiredAt: unix(j.ExpiredAt),
		CancellingAt: unix(j.Cancelling), CancelledAt: unix(j.CancelledT), Metadata: j.Metadata,
		Counts: counts{j.Tasks, j.Completed, j.Failed},
	}
	if len(j.Problems) > 0 {
		b.Errors = &problemList{Object: "list", Data: j.Problems}
	}
	tokens := j.Usage
	if !j.Status.Ended() && j.Tasks > 0 {
		live, err := a.Jobs.Job(ctx, j.Tenant, j.ID)
		switch {
		case errors.Is(err, status.ErrNoJob): // submitted a moment ago
		case err != nil:
			return nil, err
		default:
			b.Counts.Completed = live.Tasks[task.Success]
			b.Counts.Failed = live.Done - b.Counts.Completed
			tokens = live.Usage
		}
	}
	b.Usage = usage{
		InputTokens: tokens.InputTokens, InputTokensDetails: inputDetails{j.Cached}, OutputTokens: tokens.OutputTokens, OutputDetails: outputDetails{j.Reasoning},
		TotalTokens: tokens.InputTokens + tokens.OutputTokens,
	}
	return b, nil
}

// answer sends a batch.
func (a *API) answer(w http.ResponseWriter, r *http.Request, j *feed.Job) {
	ctx, cancel := a.within(r)
	defer cancel()
	b, err := a.object(ctx, j)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	openai.WriteJSON(w, http.StatusOK, b)
}

func (a *API) batch(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.within(r)
	defer cancel()
	j, err := a.Batches.Get(ctx, openai.CallerOf(ctx).Tenant, r.PathValue("batch_id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.answer(w, r, j)
}

func (a *API) list(w http.ResponseWriter, r *http.Request) {
	limit, after, err := pageOf(r, usualBatches, maxBatches)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	ctx, cancel := a.within(r)
	defer cancel()
	page, more, err := a.Batches.List(ctx, openai.CallerOf(ctx).Tenant, after, limit)
	if errors.Is(err, feed.ErrNotFound) {
		err = openai.NotFound("after", "No such batch: there is none with the id of after.")
	}
	out := listOf[*batchObject]{Object: "list", Data: make([]*batchObject, 0, len(page)), HasMore: more}
	for _, j := range page {
		var b *batchObject
		if b, err = a.object(ctx, j); err != nil {
			break
		}
		out.Data = append(out.Data, b)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	if len(page) > 0 {
		out.FirstID, out.LastID = &page[0].ID, &page[len(page)-1].ID
	}
	openai.WriteJSON(w, http.StatusOK, out)
}

// cancel records the request first, so that no batch is cancelled without a name in the log.
func (a *API) cancel(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := a.within(r)
	defer cancel()
	tenant, id := openai.CallerOf(ctx).Tenant, r.PathValue("batch_id")
	j, err := a.Batches.Get(ctx, tenant, id)
	switch {
	case err != nil:
	case j.Status == feed.Cancelling:
	case j.Status.Ended(), j.Status == feed.Finalizing:
		err = feed.ErrEnded
	default:
		if err = a.record(r, task.JobCancelRequested, "job", id, map[string]any{"status": j.Status}); err == nil {
			j, err = a.Batches.Cancel(ctx, tenant, id)
		}
	}
	if errors.Is(err, feed.ErrEnded) {
		err = &openai.Error{Status: http.StatusConflict, Message: "Cannot cancel a batch with status '" + string(j.Status) + "'.", Code: "batch_ended"}
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.answer(w, r, j)
}
