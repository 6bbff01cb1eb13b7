package jobs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// Stored is a file that Batchyard keeps, and reads as a stream whenever it needs its lines. Every line is
// in OpenAI's format, for one endpoint, and its task's id is made of the job's id and the line's number.
//
//	Check ──▶ Checked ──▶ Tasks, from any line on ──▶ the pipeline ──▶ WriteAnswers
//
// Memory grows by 16 bytes and a map's overhead for each line while it is checked, and by two bits
// otherwise.
type Stored struct {
	Name    string                                           // of the file, for errors
	Open    func(ctx context.Context) (io.ReadCloser, error) // reads it from its beginning
	Options Options                                          // with Job and Endpoint; without Bad
	SkipBad bool                                             // invalid lines are skipped; otherwise a file that has any is refused
	Errors  int                                              // how many invalid lines are listed

	plan *Plan // of the check, or an empty one
}

// Checked is a file whose lines have all been checked.
type Checked struct {
	Spec   *task.JobSpec
	Model  string // if all lines name the same
	Errors []LineError
	More   int // invalid lines that are not listed
}

// newPlan returns an empty plan for the file.
func (s *Stored) newPlan() *Plan {
	o := s.Options
	o.Config = o.Config.WithDefaults()
	o.Limits.MaxInput = cmp.Or(o.Limits.MaxInput, 1<<20)
	if s.SkipBad {
		o.Bad = &BadLines{}
	}
	return &Plan{
		Path: s.Name, Job: o.Job, Tenant: cmp.Or(o.Defaults.Tenant, task.DefaultTenant),
		Endpoints: map[string]int{}, Models: map[string]int{}, own: map[[16]byte]int{}, options: o,
	}
}

// Check checks every line. An *[InvalidError] or a *[FileError] says what is wrong with the file; any other
// error, that it could not be read.
func (s *Stored) Check(ctx context.Context) (*Checked, error) {
	p := s.newPlan()
	c := checker{plan: p, invalid: InvalidError{Path: p.Path, most: s.Errors}, customIDs: map[[16]byte]int{}, sum: newFingerprint()}
	lines, err := s.each(ctx, p, 0, func(l lineAt, q parsed, err error) error {
		p.Bytes += int64(len(l.text)) + 1
		return c.line(l, q, err)
	})
	switch {
	case err != nil:
		return nil, err
	case len(c.invalid.Lines) > 0 && (!s.SkipBad || p.Tasks == 0):
		return nil, &c.invalid
	case p.Tasks == 0:
		return nil, &FileError{CodeEmpty, "the file holds no request; put one JSON object on each line"}
	}
	p.Lines, p.SHA256 = lines, c.sum.hex()
	s.plan = p
	out := &Checked{Spec: p.Spec(), Errors: c.invalid.Lines, More: c.invalid.More}
	if len(p.Models) == 1 {
		for out.Model = range p.Models {
		}
	}
	return out, nil
}

// each calls fn for every line after the given one.
func (s *Stored) each(ctx context.Context, p *Plan, after int, fn func(l lineAt, q parsed, err error) error) (lines int, err error) {
	f, err := s.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	r := bufio.NewReaderSize(contextReader{ctx, f}, 64<<10)
	head, err := r.Peek(headBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("reading %s: %w", s.Name, err)
	}
	packed := compressionOf(head)
	if packed == plainFile {
		if wrong := checkHead(head); wrong != nil {
			return 0, &InvalidError{Path: s.Name, Lines: []LineError{{Line: 1, Err: wrong}}}
		}
		return p.eachFrom(ctx, r, after, fn)
	}
	content, err := openPacked(r, packed)
	if err != nil {
		return 0, &InvalidError{Path: s.Name, Lines: []LineError{{Line: 1, Err: fieldErr("", "compress it again", "the file looks like %s, but cannot be decompressed", packed)}}}
	}
	defer func() { _ = content.Close() }() // the same
	return p.eachFrom(ctx, &boundedReader{content, p.options.Config.MaxBytes}, after, fn)
}

// boundedReader reads at most left bytes; more are an error.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(to []byte) (int, error) {
	n, err := b.r.Read(to)
	if b.left -= int64(n); b.left < 0 {
		return 0, &FileError{CodeTooLarge, "the content of the compressed file is larger than jobs.max_bytes; split it"}
	}
	return n, err
}

// checked makes sure that it is known which lines are skipped, which only a check can tell.
func (s *Stored) checked(ctx context.Context, bad int64) (*Plan, error) {
	if s.plan == nil && bad > 0 {
		if _, err := s.Check(ctx); err != nil {
			return nil, err
		}
	}
	if s.plan == nil {
		s.plan = s.newPlan()
	}
	return s.plan, nil
}

// Tasks calls fn with the task of every line after the given one. bad is how many lines the check has
// found to be invalid.
func (s *Stored) Tasks(ctx context.Context, after int, bad int64, fn func(line int, t *task.Task) error) error {
	p, err := s.checked(ctx, bad)
	if err != nil {
		return err
	}
	_, err = s.each(ctx, p, after, func(l lineAt, q parsed, err error) error {
		if p.skipped.has(l.number) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s:%d: the line was valid when it was checked, and is not now: %w", s.Name, l.number, err)
		}
		return fn(l.number, q.task)
	})
	return err
}

// Answers says where the output of a stored file's job goes: answers to Output, everything else to Errors.
type Answers struct {
	Output, Errors io.Writer
	// Unfinished is the state that tasks without a result get a line with: EXPIRED or CANCELLED. Empty: every
	// task has a result.
	Unfinished task.State
	Bad        int64 // lines that the check found to be invalid
}

// Counts is what was written.
type Counts struct {
	Completed, Failed int64 // lines of the output, and of the errors
	Expired           int64 // of the latter, those whose time was over
	Usage             task.Usage
	Cached, Reasoning int64 // tokens, of those in Usage
}

// WriteAnswers writes one line for each task. Answers are in the order of the lines; so are errors, but those of
// tasks without a result come last.
func (s *Stored) WriteAnswers(ctx context.Context, from Source, o Answers) (Counts, error) {
	p, err := s.checked(ctx, o.Bad)
	if err != nil {
		return Counts{}, err
	}
	w := answerWriter{output: o.Output, errors: o.Errors}
	var seen bitset
	err = from.JobResults(ctx, p.Tenant, p.Job, func(r *task.Result) error {
		line, ok := LineOf(p.Job, r.TaskID)
		if !ok || seen.has(line) {
			return nil // a task that names the job and is not in the file
		}
		seen.set(line)
		return w.write(r)
	})
	if err != nil || o.Unfinished == "" {
		return w.counts, err
	}
	now := time.Now()
	_, err = s.each(ctx, p, 0, func(l lineAt, q parsed, err error) error {
		if err != nil || p.skipped.has(l.number) || seen.has(l.number) {
			return nil //nolint:nilerr // an invalid line, which is skipped
		}
		r := task.NewResult(q.task, o.Unfinished, now)
		r.Error = unfinishedErrors[o.Unfinished]
		return w.write(r)
	})
	return w.counts, err
}

// answerWriter writes results to the file they belong in, and counts them.
type answerWriter struct {
	output, errors io.Writer
	counts         Counts
	buf            bytes.Buffer
}

func (w *answerWriter) write(r *task.Result) error {
	w.buf.Reset()
	if err := encodeLine(&w.buf, r.Key(), OpenAILine(r)); err != nil {
		return err
	}
	w.counts.Usage.InputTokens += r.Usage.InputTokens
	w.counts.Usage.OutputTokens += r.Usage.OutputTokens
	cached, reasoning := tokenDetails(r.Output)
	w.counts.Cached += cached
	w.counts.Reasoning += reasoning
	to := w.errors
	switch r.State {
	case task.Success:
		to = w.output
		w.counts.Completed++
	case task.Expired:
		w.counts.Expired++
		w.counts.Failed++
	default:
		w.counts.Failed++
	}
	if _, err := to.Write(w.buf.Bytes()); err != nil {
		return fmt.Errorf("writing the answer of task %s: %w", r.Key(), err)
	}
	return nil
}

// tokenDetails returns the cached and the reasoning tokens of a device's answer, 0 where it does not say. Chat and
// responses name them differently.
func tokenDetails(output task.Input) (cached, reasoning int64) {
	var usage []byte
	wire.Members(output, func(key string, value []byte) bool {
		if key == "usage" {
			usage = value
		}
		return true
	})
	if len(usage) == 0 {
		return 0, 0
	}
	var u struct {
		Prompt struct {
			Cached int64 `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
		Input struct {
			Cached int64 `json:"cached_tokens"`
		} `json:"input_tokens_details"`
		Completion struct {
			Reasoning int64 `json:"reasoning_tokens"`
		} `json:"completion_tokens_details"`
		Output struct {
			Reasoning int64 `json:"reasoning_tokens"`
		} `json:"output_tokens_details"`
	}
	if json.Unmarshal(usage, &u) != nil {
		return 0, 0 // a device may write anything
	}
	return max(0, u.Prompt.Cached, u.Input.Cached), max(0, u.Completion.Reasoning, u.Output.Reasoning)
}
