package feed

import (
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/batchyard/batchyard/task"
)

// Status is the status of a batch, by its name in OpenAI's API.
type Status string

// The statuses.
const (
	Validating Status = "validating"
	Failed     Status = "failed" // its file is invalid: nothing of it has run
	InProgress Status = "in_progress"
	Finalizing Status = "finalizing"
	Completed  Status = "completed"
	Expired    Status = "expired"
	Cancelling Status = "cancelling"
	Cancelled  Status = "cancelled"
)

// Ended reports whether no other status follows.
func (s Status) Ended() bool {
	return s == Failed || s == Completed || s == Expired || s == Cancelled
}

// Problem is something that is wrong with a file.
type Problem struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"`
	Line    *int    `json:"line"` // nil: the whole file
}

// Job is a job whose file is stored: a batch.
type Job struct {
	Tenant     string
	ID         string
	Status     Status
	Endpoint   string
	Model      string // empty: its lines name several, or it was not checked yet
	Input      string // ids of files; empty: there is none
	Output     string
	ErrorFile  string
	Window     string        // how long it may take, as the client wrote it
	OutputTTL  time.Duration // how long its output is kept
	Metadata   map[string]string
	SkipBad    bool
	Request    [32]byte // digest of what was asked for
	Key        string   // the client's idempotency key
	Origin     task.Origin
	Problems   []Problem
	Tasks      int64 // in the file; 0 before it was checked
	Bad        int64 // lines that are skipped
	FedLine    int64 // every task up to this line is in Kafka
	FedUntil   int64 // tasks up to this line may be
	FedTasks   int64 // number of tasks up to FedLine
	Completed  int64
	Failed     int64
	Usage      task.Usage
	Cached     int64
	Reasoning  int64
	CreatedAt  time.Time
	ExpiresAt  time.Time
	InProgress *time.Time // these are nil if it has not happened
	Finalizing *time.Time
	CompletedT *time.Time
	FailedAt   *time.Time
	ExpiredAt  *time.Time
	Cancelling *time.Time
	CancelledT *time.Time
}

const columns = `tenant, job_id, status, endpoint, coalesce(model, ''), input_file_id, coalesce(output_file_id, ''), coalesce(error_file_id, ''),
	completion_window, output_ttl, metadata::text, skip_bad_lines, request, coalesce(idempotency_key, ''), requested_by, source_addr, user_agent, errors::text,
	coalesce(tasks, 0), bad_lines, fed_line, fed_until, fed_tasks, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
	created_at, expires_at, in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at`

func scan(row pgx.Row) (*Job, error) {
	j := &Job{}
	var ttl int64
	var metadata, errs, request []byte
	err := row.Scan(&j.Tenant, &j.ID, &j.Status, &j.Endpoint, &j.Model, &j.Input, &j.Output, &j.ErrorFile, &j.Window, &ttl, &metadata, &j.SkipBad, &request, &j.Key,
		&j.Origin.Actor, &j.Origin.Addr, &j.Origin.UserAgent, &errs, &j.Tasks, &j.Bad, &j.FedLine, &j.FedUntil, &j.FedTasks, &j.Completed, &j.Failed,
		&j.Usage.InputTokens, &j.Cached, &j.Usage.OutputTokens, &j.Reasoning, &j.CreatedAt, &j.ExpiresAt, &j.InProgress, &j.Finalizing, &j.CompletedT,
		&j.FailedAt, &j.ExpiredAt, &j.Cancelling, &j.CancelledT)
	if err != nil {
		return nil, err
	}
	j.OutputTTL = time.Duration(ttl) * time.Second
	copy(j.Request[:], request)
	if metadata != nil {
		err = json.Unmarshal(metadata, &j.Metadata)
	}
	if errs != nil && err == nil {
		err = json.Unmarshal(errs, &j.Problems)
	}
	return j, err
}
