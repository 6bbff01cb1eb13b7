package batches

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/api/openai"
	"github.com/batchyard/batchyard/internal/clock"
	"github.com/batchyard/batchyard/jobs/feed"
	"github.com/batchyard/batchyard/jobs/files"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Bounds of a request to create a batch.
const (
	maxBody      = 64 << 10
	maxPairs     = 16
	maxPairName  = 64
	maxPairValue = 512
	minWindow    = time.Second
	maxWindow    = 366 * 24 * time.Hour
)

// createIn is the request to create a batch. Other fields are refused: what they ask for would not happen.
type createIn struct {
	Input    string            `json:"input_file_id"`
	Endpoint string            `json:"endpoint"`
	Window   string            `json:"completion_window"`
	Metadata map[string]string `json:"metadata"`
	Output   *struct {
		Anchor  string  `json:"anchor"`
		Seconds float64 `json:"seconds"` // a whole number, which some clients write as 3600.0
	} `json:"output_expires_after"`
	SkipBad bool `json:"skip_bad_lines"` // ours
}

func (a *API) create(w http.ResponseWriter, r *http.Request) {
	j, err := a.requested(w, r)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	a.answer(w, r, j)
}

// requested creates the batch that a request asks for, or finds it if the request has come before.
func (a *API) requested(w http.ResponseWriter, r *http.Request) (*feed.Job, error) {
	in, err := readCreate(w, r)
	if err != nil {
		return nil, err
	}
	window, err := in.check()
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.within(r)
	defer cancel()
	c := openai.CallerOf(ctx)
	f, err := a.Files.Get(ctx, c.Tenant, in.Input)
	switch {
	case errors.Is(err, files.ErrNotFound):
		return nil, openai.NotFound("input_file_id", "No such file: upload it first, with the purpose batch.")
	case err != nil:
		return nil, err
	case f.Purpose != files.Batch:
		return nil, openai.Invalid("input_file_id", "The file is the output of a batch: upload one with the purpose batch.")
	}
	canonical, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	now := clock.Now().UTC().Truncate(time.Microsecond)
	j := &feed.Job{
		Tenant: c.Tenant, ID: files.NewID("batch_"), Endpoint: in.Endpoint, Input: in.Input, Window: in.Window, OutputTTL: a.Files.Config().OutputTTL,
		Metadata: in.Metadata, SkipBad: in.SkipBad, Request: sha256.Sum256(canonical), Key: r.Header.Get("Idempotency-Key"), Origin: c.Origin,
		CreatedAt: now, ExpiresAt: now.Add(window),
	}
	if in.Output != nil {
		j.OutputTTL = time.Duration(in.Output.Seconds) * time.Second
	}
	if len(j.Key) > 255 || !utf8.ValidString(j.Key) || strings.ContainsFunc(j.Key, isControl) {
		return nil, openai.Invalid("Idempotency-Key", "Send up to 255 printable characters.")
	}
	attempt := feed.First
	if n, err := strconv.Atoi(r.Header.Get("X-Stainless-Retry-Count")); err == nil && n > 0 {
		attempt = feed.Again
	}
	return a.store(ctx, r, j, attempt)
}

// store creates the batch. If the process dies before the event is written, the row is there and the log lacks the
// request; the events of the job follow.
func (a *API) store(ctx context.Context, r *http.Request, j *feed.Job, attempt feed.Attempt) (*feed.Job, error) {
	have, created, err := a.Batches.Create(ctx, j, attempt)
	if errors.Is(err, feed.ErrKeyReused) {
		return nil, &openai.Error{Status: http.StatusConflict, Message: "The Idempotency-Key belongs to another request: use a key of its own for each.", Param: "Idempotency-Key", Code: "idempotency_key_reused"}
	}
	if err != nil {
		return nil, err
	}
	if created {
		err = a.record(r, task.JobRequested, "job", j.ID, map[string]any{"input_file_id": j.Input, "endpoint": j.Endpoint, "completion_window": j.Window, "skip_bad_lines": j.SkipBad})
	}
	return have, err
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func readCreate(w http.ResponseWriter, r *http.Request) (*createIn, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &openai.Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("The body is larger than %d bytes.", maxBody)}
	case err != nil:
		return nil, &openai.Error{Status: http.StatusBadRequest, Message: "The body broke off: send the request again."}
	}
	in := &createIn{}
	if err := task.CheckJSON(body); err != nil {
		return nil, openai.Invalid("", "The body is not valid JSON.")
	}
	if !strings.HasPrefix(strings.TrimLeft(string(body), " \t\r\n"), "{") {
		return nil, openai.Invalid("", "The body is not a JSON object.")
	}
	if err := wire.Unmarshal(body, in); err != nil {
		var fe *task.FieldError
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &fe):
			return nil, openai.Invalid(fe.Field, fe.Error())
		case errors.As(err, &kind):
			return nil, openai.Invalid(kind.Field, "The field has the wrong type: JSON "+kind.Value+".")
		}
		return nil, openai.Invalid("", "The body is not a request to create a batch.")
	}
	return in, nil
}

// check returns the completion window.
func (in *createIn) check() (time.Duration, error) {
	switch {
	case in.Input == "":
		return 0, openai.Invalid("input_file_id", "Missing: send the id of an uploaded file.")
	case utf8.RuneCountInString(in.Input) > task.MaxIDLength || !utf8.ValidString(in.Input) || strings.ContainsFunc(in.Input, isControl):
		return 0, openai.Invalid("input_file_id", "It is not the id of a file.")
	case !slices.Contains(task.Endpoints, in.Endpoint):
		return 0, openai.Invalid("endpoint", "Unknown endpoint: use one of "+strings.Join(task.Endpoints, ", ")+".")
	}
	window, err := time.ParseDuration(in.Window)
	if err != nil || window < minWindow || window > maxWindow {
		return 0, openai.Invalid("completion_window", `Send a duration from 1s to 8784h, such as "24h" or "90m".`)
	}
	if len(in.Metadata) > maxPairs {
		return 0, openai.Invalid("metadata", fmt.Sprintf("It has more than %d pairs.", maxPairs))
	}
	for name, value := range in.Metadata {
		if utf8.RuneCountInString(name) > maxPairName || utf8.RuneCountInString(value) > maxPairValue || strings.ContainsRune(name+value, 0) {
			return 0, openai.Invalid("metadata", fmt.Sprintf("A name has more than %d characters, or a value more than %d.", maxPairName, maxPairValue))
		}
	}
	if o := in.Output; o != nil {
		seconds := int64(o.Seconds)
		if float64(seconds) != o.Seconds {
			seconds = 0
		}
		if err := checkExpiry(o.Anchor, seconds); err != nil {
			return 0, err
		}
	}
	return window, nil
}
