package jobs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/task"
)

// Source streams the results of a job in the order of task ids: a store, or a client of
// the API.
type Source interface {
	JobResults(ctx context.Context, tenant, job string, fn func(*task.Result) error) error
}

// Summary counts the results that were written.
type Summary struct {
	Written  int
	Missing  int // tasks of the file that had no result
	ByState  map[task.State]int
	ByDevice map[string]int
}

// CheckOutput checks, before the work is done, whether results can be written to path. It
// leaves nothing behind.
func CheckOutput(path string) error {
	if path == "" || path == "-" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("cannot write results to %s: it is a directory", path)
	}
	if isStream(path) {
		return nil // opening a pipe would block until it has a reader
	}
	f, err := os.OpenFile(path+".part", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write results to %s: %w", path, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Output says where the results of a job go.
type Output struct {
	Path   string    // "-": Stdout, which gets each line at once
	Stdout io.Writer // for "-"
	// Unfinished is the state that tasks without a result get a line with, as if they had ended so:
	// EXPIRED or CANCELLED. Empty: they get none.
	Unfinished task.State
}

// WriteResults writes one line for each result of the plan's tasks, in the order of the
// input. The file appears once it is complete; "-" is stdout, which gets each line at
// once.
func (p *Plan) WriteResults(ctx context.Context, from Source, path string, stdout io.Writer) (Summary, error) {
	return p.WriteOutput(ctx, from, Output{Path: path, Stdout: stdout})
}

// WriteOutput is [Plan.WriteResults] that may also write lines for tasks without a result.
func (p *Plan) WriteOutput(ctx context.Context, from Source, o Output) (Summary, error) {
	return o.write(p.Job, func(w io.Writer) (Summary, error) { return p.writeTo(ctx, from, o.Unfinished, w) })
}

// Export writes the results of a job whose file is not at hand, in the order of their task ids:
// the order of the lines, unless these have ids of their own. The format is that of the job. In a job
// of both formats, results with a custom_id take OpenAI's.
func Export(ctx context.Context, from Source, j *task.Job, o Output) (Summary, error) {
	return o.write(j.JobID, func(w io.Writer) (Summary, error) {
		s := newSummary()
		out := bufio.NewWriterSize(w, 256<<10)
		var buf bytes.Buffer
		err := from.JobResults(ctx, j.Tenant, j.JobID, func(r *task.Result) error {
			s.count(r)
			var line any = r
			if j.Format == task.FormatOpenAI || j.Format == task.FormatMixed && r.CustomID != "" {
				line = OpenAILine(r)
			}
			buf.Reset()
			if err := encodeLine(&buf, r.Key(), line); err != nil {
				return err
			}
			_, err := out.Write(buf.Bytes())
			return err
		})
		if err == nil {
			err = out.Flush()
		}
		s.Missing = max(0, int(j.Total)-s.Written)
		return s, err
	})
}

// write calls fn with where the results go.
func (o Output) write(job string, fn func(w io.Writer) (Summary, error)) (Summary, error) {
	if o.Path == "-" {
		s, err := fn(o.Stdout)
		if err != nil {
			return s, fmt.Errorf("writing the results of job %s: %w", job, err)
		}
		return s, nil
	}
	open, done := o.openPart, os.Rename
	if isStream(o.Path) {
		open, done = o.openStream, func(string, string) error { return nil }
	}
	f, err := open()
	if err != nil {
		return Summary{}, fmt.Errorf("writing the results of job %s: %w", job, err)
	}
	s, err := fn(f)
	if err == nil && f.Name() != o.Path {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = done(f.Name(), o.Path)
	}
	if err == nil {
		return s, nil
	}
	if f.Name() != o.Path {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return s, fmt.Errorf("writing the results of job %s to %s: %w", job, o.Path, err)
}

// openPart creates the file in the target's directory, because a rename cannot cross file systems. If
// the process dies before the rename, it leaves a .part file and the target unchanged.
func (o Output) openPart() (*os.File, error) {
	return os.OpenFile(o.Path+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
}

func (o Output) openStream() (*os.File, error) { return os.OpenFile(o.Path, os.O_WRONLY, 0) }

// isStream reports whether path is a device or a named pipe, such as /dev/null: a rename
// would replace it by a file.
func isStream(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular() && !info.IsDir()
}

func newSummary() Summary { return Summary{ByState: map[task.State]int{}, ByDevice: map[string]int{}} }

func (s *Summary) count(r *task.Result) {
	s.Written++
	s.ByState[r.State]++
	if r.DeviceID != "" {
		s.ByDevice[r.DeviceID]++
	}
}

func (p *Plan) writeTo(ctx context.Context, from Source, unfinished task.State, w io.Writer) (Summary, error) {
	s := newSummary()
	out := bufio.NewWriterSize(w, 256<<10)
	var sp *spooled
	if len(p.own) > 0 || unfinished != "" {
		// Ids set by the user do not sort like lines: results are spooled as they arrive
		// and written in order afterwards. So are those between which lines are missing.
		var err error
		if sp, err = newSpooled(); err != nil {
			return s, err
		}
		defer sp.close()
	}
	var seen bitset
	var buf bytes.Buffer
	err := from.JobResults(ctx, p.Tenant, p.Job, func(r *task.Result) error {
		line, ok := p.lineOf(r)
		if !ok || seen.has(line) {
			return nil // from another version of the file
		}
		seen.set(line)
		s.count(r)
		buf.Reset()
		if err := encodeLine(&buf, r.Key(), p.form(line, r)); err != nil {
			return err
		}
		if sp != nil {
			return sp.put(line, buf.Bytes())
		}
		_, err := out.Write(buf.Bytes())
		return err
	})
	s.Missing = p.Tasks - s.Written
	if err != nil {
		return s, err
	}
	if unfinished != "" && s.Missing > 0 {
		if err := p.fillIn(ctx, unfinished, &seen, sp); err != nil {
			return s, err
		}
	}
	if sp != nil {
		if err := sp.writeTo(out); err != nil {
			return s, err
		}
	}
	return s, out.Flush()
}

// unfinishedErrors say why a task has no result.
var unfinishedErrors = map[task.State]*task.Error{
	task.Expired:   {Class: task.ClassExpired, Message: "the task had not finished when the time was over"},
	task.Cancelled: {Class: task.ClassCancelled, Message: "the task had not finished when the job was interrupted"},
}

// fillIn adds a line for each task that has none.
func (p *Plan) fillIn(ctx context.Context, unfinished task.State, seen *bitset, sp *spooled) error {
	var buf bytes.Buffer
	now := time.Now()
	_, err := p.each(ctx, func(l lineAt, q parsed, err error) error {
		if err != nil || !p.tasks.has(l.number) || seen.has(l.number) {
			return nil //nolint:nilerr // an invalid line, which is skipped
		}
		r := task.NewResult(q.task, unfinished, now)
		r.Error = unfinishedErrors[unfinished]
		buf.Reset()
		if err := encodeLine(&buf, r.Key(), p.form(l.number, r)); err != nil {
			return err
		}
		return sp.put(l.number, buf.Bytes())
	})
	return err
}

// lineOf returns the line of a result's task.
func (p *Plan) lineOf(r *task.Result) (int, bool) {
	if line, ok := p.own[r.Key().Hash()]; ok {
		return line, true
	}
	line, ok := LineOf(p.Job, r.TaskID)
	return line, ok && p.tasks.has(line)
}

// outLine is a line of OpenAI's batch output.
type outLine struct {
	ID       string    `json:"id"`
	CustomID string    `json:"custom_id"`
	Response *response `json:"response"`
	Error    *outError `json:"error"`
}

type response struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

type outError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// httpError is the body of an error in OpenAI's API.
type httpError struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	} `json:"error"`
}

// form returns a result in the format of its input line.
func (p *Plan) form(line int, r *task.Result) any {
	if p.openAI.has(line) {
		return OpenAILine(r)
	}
	return r
}

// encodeLine writes a line of the output and a line end. Every program takes it for one line,
// whatever characters the device's answer has.
func encodeLine(w *bytes.Buffer, k task.Key, v any) error {
	e := json.NewEncoder(text.JSONLines(w))
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing the result of task %s: %w", k, err)
	}
	return nil
}

// OpenAILine converts a result to a line of OpenAI's batch output: an HTTP answer, even
// one that reports an invalid request, is a response; without one, error says why.
func OpenAILine(r *task.Result) any {
	h := r.Key().Hash()
	l := outLine{ID: "batch_req_" + hex.EncodeToString(h[:12]), CustomID: r.CustomID}
	switch {
	case r.State == task.Expired:
		l.Error = &outError{"batch_expired", "This request could not be executed before the completion window expired."}
	case r.State == task.Cancelled:
		l.Error = &outError{"batch_cancelled", "This request was cancelled before it was executed."}
	case r.State == task.Success:
		status := r.Status
		status = cmp.Or(status, 200)
		l.Response = &response{status, r.TraceID, json.RawMessage(r.Output)}
		if len(r.Output) == 0 {
			l.Response.Body = json.RawMessage("null")
		}
	case r.Status >= 400:
		l.Response = &response{r.Status, r.TraceID, errorBody(r)}
	default:
		code, message := reason(r)
		l.Error = &outError{code, message}
	}
	return l
}

// errorBody returns the device's answer if it has OpenAI's shape of an error, else the
// reason in that shape.
func errorBody(r *task.Result) json.RawMessage {
	var shape struct {
		Error json.RawMessage `json:"error"`
	}
	if len(r.Output) > 0 && json.Unmarshal(r.Output, &shape) == nil && bytes.HasPrefix(bytes.TrimSpace(shape.Error), []byte("{")) {
		return json.RawMessage(r.Output)
	}
	var e httpError
	code, message := reason(r)
	e.Error.Message, e.Error.Type, e.Error.Code = message, "server_error", &code
	if r.Status < 500 {
		e.Error.Type = "invalid_request_error"
	}
	b, err := json.Marshal(e)
	if err != nil { // cannot happen: it has only strings
		return json.RawMessage(`{"error":{"message":"","type":"server_error","param":null,"code":null}}`)
	}
	return b
}

func reason(r *task.Result) (code, message string) {
	if r.Error == nil {
		return string(task.ClassInternal), "the task ended without an answer"
	}
	return string(r.Error.Class), r.Error.Message
}

// spooled is lines written to a temporary file in any order, and where each of them is.
type spooled struct {
	f   *os.File
	w   *bufio.Writer
	end int64
	at  []span // by line
}

type span struct {
	from int64
	n    int32
}

func newSpooled() (*spooled, error) {
	f, err := os.CreateTemp("", "batchyard-results-*")
	if err != nil {
		return nil, fmt.Errorf("sorting results: %w", err)
	}
	return &spooled{f: f, w: bufio.NewWriterSize(f, 256<<10)}, nil
}

func (s *spooled) put(line int, b []byte) error {
	for len(s.at) <= line {
		s.at = append(s.at, make([]span, max(64, len(s.at)))...)
	}
	s.at[line] = span{s.end, int32(len(b))}
	s.end += int64(len(b))
	if _, err := s.w.Write(b); err != nil {
		return fmt.Errorf("sorting results in %s: %w", filepath.Base(s.f.Name()), err)
	}
	return nil
}

func (s *spooled) writeTo(w io.Writer) error {
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("sorting results in %s: %w", filepath.Base(s.f.Name()), err)
	}
	for _, p := range s.at {
		if p.n == 0 {
			continue
		}
		if _, err := io.Copy(w, io.NewSectionReader(s.f, p.from, int64(p.n))); err != nil {
			return fmt.Errorf("sorting results: %w", err)
		}
	}
	return nil
}

func (s *spooled) close() {
	_ = s.f.Close() // a temporary file: nothing is lost
	_ = os.Remove(s.f.Name())
}
