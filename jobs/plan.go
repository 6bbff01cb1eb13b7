package jobs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/batchyard/batchyard/task"
)

// maxReported is how many bad lines an error lists.
const maxReported = 20

// maxModels is how many models a plan counts.
const maxModels = 100

// LineError is an invalid line.
type LineError struct {
	Line   int
	Err    *task.FieldError
	Repeat bool // it has an id that an earlier line has
}

// FileError means that a file as a whole cannot become a job, whatever its lines say.
type FileError struct {
	Code    string // what is wrong, in one word
	Problem string // and in a sentence, with the remedy
}

// The codes of a [FileError].
const (
	CodeEmpty    = "empty_file"
	CodeTooLarge = "file_too_large"
	CodeTooMany  = "too_many_tasks"
	CodeAllBad   = "no_valid_line"
)

// Error returns the problem.
func (e *FileError) Error() string { return e.Problem }

// repeatError means that a line has an id that an earlier line has.
type repeatError struct{ *task.FieldError }

// Unwrap returns what is wrong with the line.
func (e *repeatError) Unwrap() error { return e.FieldError }

// InvalidError means that a file was not submitted because of invalid lines.
type InvalidError struct {
	Path  string
	Lines []LineError // the first ones
	More  int         // how many more are invalid

	most int // how many are listed; 0: maxReported
}

// Error returns one line of text for each invalid line.
func (e *InvalidError) Error() string {
	var b strings.Builder
	for i, l := range e.Lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d: %s", e.Path, l.Line, l.Err)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n%s: %d more lines are invalid", e.Path, e.More)
	}
	return b.String()
}

func (e *InvalidError) add(line int, err error) {
	if len(e.Lines) == cmp.Or(e.most, maxReported) {
		e.More++
		return
	}
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		fe = &task.FieldError{Problem: err.Error()}
	}
	var repeat *repeatError
	e.Lines = append(e.Lines, LineError{line, fe, errors.As(err, &repeat)})
}

// Plan is a file whose lines have all been checked. Close it after use.
type Plan struct {
	Job       string
	Tenant    string
	Path      string         // as passed to Open; "-" is standard input
	Tasks     int            // lines that are tasks
	Lines     int            // in the file, including blank ones
	Endpoints map[string]int // tasks by endpoint
	Models    map[string]int // tasks by model, for the first hundred models
	SHA256    string         // the file's fingerprint, in hex: a digest of what its lines ask for
	Bytes     int64          // size of the file
	Bad       int            // invalid lines, which are skipped

	options Options
	file    *os.File
	temp    string
	openAI  bitset           // by line
	tasks   bitset           // by line: whether it is a task
	skipped bitset           // by line: whether it is invalid and skipped
	openAIs int              // tasks in OpenAI's format
	own     map[[16]byte]int // task with an id of its own → line
}

// Open checks every line of a file, or of standard input for "-", and returns the plan to
// submit. Invalid lines are an *InvalidError, which lists the first 20, unless they are to be
// skipped.
func Open(ctx context.Context, path string, stdin io.Reader, o Options) (_ *Plan, err error) {
	o.Config = o.Config.WithDefaults()
	o.Limits.MaxInput = cmp.Or(o.Limits.MaxInput, 1<<20)
	p := &Plan{Path: path, Job: o.Job, Tenant: o.Defaults.Tenant, Endpoints: map[string]int{}, Models: map[string]int{}, options: o}
	p.Tenant = cmp.Or(p.Tenant, task.DefaultTenant)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if path == "-" {
		err = p.save(contextReader{ctx, stdin}, "standard input")
	} else {
		p.file, err = os.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the job file: %w", err)
	}
	if err := p.identify(ctx); err != nil {
		return nil, err
	}
	if err := p.check(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// provisional is the id of a job while its file is checked: as long as one that is derived.
var provisional = derived(strings.Repeat("0", 64))

// derived returns the id of a job that is named after its file's fingerprint.
func derived(sha256 string) string { return "job-" + sha256[:24] }

// identify checks what the job is called and how large its file is, and unpacks it if it is compressed.
func (p *Plan) identify(ctx context.Context) error {
	info, err := p.file.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("inspecting the job file: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file; pass it on standard input with -", p.Path)
	case info.Size() > p.options.Config.MaxBytes:
		return fmt.Errorf("%s has %d bytes, the limit is %d; split it, or raise jobs.max_bytes", p.Path, info.Size(), p.options.Config.MaxBytes)
	}
	if err := p.unpack(ctx); err != nil {
		return err
	}
	p.Bytes = info.Size()
	if n := utf8.RuneCountInString(p.Job); n > maxJobID {
		return &task.FieldError{Field: "job_id", Problem: fmt.Sprintf("it has %d characters, the limit is %d", n, maxJobID), Remedy: "shorten it"}
	}
	return nil
}

func (p *Plan) rewind() error {
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading %s again: %w", p.Path, err)
	}
	return nil
}

// check is the first pass: it checks every line and keeps none.
func (p *Plan) check(ctx context.Context) error {
	named := p.Job != ""
	if !named {
		p.Job = provisional
	}
	c := checker{plan: p, invalid: InvalidError{Path: p.Path}, customIDs: map[[16]byte]int{}, sum: newFingerprint()}
	p.own = map[[16]byte]int{}
	lines, err := p.each(ctx, c.line)
	if p.options.Bad != nil {
		err = errors.Join(err, p.options.Bad.close())
	}
	if err != nil {
		return err
	}
	p.Lines = lines
	if len(c.invalid.Lines) > 0 && p.options.Bad == nil {
		return &c.invalid
	}
	if p.Tasks == 0 && p.Bad > 0 {
		return fmt.Errorf("%s: every line is invalid; %s has the errors", p.Path, p.options.Bad.Path)
	}
	if p.Tasks == 0 {
		return &FileError{CodeEmpty, p.Path + " holds no task; put one JSON object on each line"}
	}
	if p.SHA256 = c.sum.hex(); !named {
		p.Job = derived(p.SHA256)
	}
	return nil
}

// checker is the state of the first pass.
type checker struct {
	plan      *Plan
	invalid   InvalidError
	customIDs map[[16]byte]int
	sum       fingerprint
}

// line checks one line.
func (c *checker) line(l lineAt, q parsed, err error) error {
	if err == nil {
		err = c.duplicate(l.number, &q)
	}
	p := c.plan
	var format *formatError
	if errors.As(err, &format) && p.Tasks == 0 && len(c.invalid.Lines) == 0 { // it says what the whole file is
		return &InvalidError{Path: p.Path, Lines: []LineError{{Line: l.number, Err: format.FieldError}}}
	}
	if err != nil {
		c.invalid.add(l.number, err)
		if p.options.Bad == nil {
			return nil
		}
		p.Bad++
		p.skipped.set(l.number)
		return p.options.Bad.add(l, err)
	}
	if q.openAI {
		p.openAI.set(l.number)
		p.openAIs++
	}
	if p.Tasks++; p.Tasks > p.options.Config.MaxLines {
		return &FileError{CodeTooMany, fmt.Sprintf("%s has more than %d tasks; split it, or raise %s", p.Path, p.options.Config.MaxLines, cmp.Or(p.options.LinesSetting, "jobs.max_lines"))}
	}
	p.tasks.set(l.number)
	p.Endpoints[q.task.Endpoint]++
	if _, known := p.Models[q.task.Model]; known || len(p.Models) < maxModels {
		p.Models[q.task.Model]++
	}
	c.sum.add(l.number, &q)
	return nil
}

// duplicate returns what is wrong with a line whose ids an earlier line has.
func (c *checker) duplicate(line int, q *parsed) error {
	if q.openAI {
		h := short(q.task.CustomID)
		if first, ok := c.customIDs[h]; ok {
			return &repeatError{fieldErr("custom_id", "give each line its own", "line %d has the same", first)}
		}
		c.customIDs[h] = line
	}
	if q.ownID {
		h := q.task.Key().Hash()
		if first, ok := c.plan.own[h]; ok {
			return &repeatError{fieldErr("task_id", "give each task its own", "line %d has the same", first)}
		}
		c.plan.own[h] = line
	}
	return nil
}

// Spec is the announcement of the job.
func (p *Plan) Spec() *task.JobSpec {
	s := &task.JobSpec{JobID: p.Job, Tenant: p.Tenant, SHA256: p.SHA256, Tasks: int64(p.Tasks), Lines: int64(p.Lines), BadLines: int64(p.Bad), Bytes: p.Bytes, Format: task.FormatMixed}
	switch p.openAIs {
	case p.Tasks:
		s.Format = task.FormatOpenAI
	case 0:
		s.Format = task.FormatBatchyard
	}
	if p.Path != "-" {
		s.File = fileName(p.Path)
	}
	return s
}

// fileName is what the server learns of the path of a file: its last element, as plain text.
func fileName(path string) string {
	name := []rune(strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(filepath.Base(path), "")))
	return string(name[:min(len(name), task.MaxFileName)])
}

// lineAt is a line of the file. Its text is valid until the next one is read, and missing if the line
// is too long.
type lineAt struct {
	number int
	text   []byte
}

// each calls fn for every line that is not blank. err is what is wrong with it.
func (p *Plan) each(ctx context.Context, fn func(l lineAt, q parsed, err error) error) (lines int, err error) {
	if err := p.rewind(); err != nil {
		return 0, err
	}
	return p.eachFrom(ctx, p.file, 0, fn)
}

// eachFrom is each for the lines that r reads, without those up to after.
func (p *Plan) eachFrom(ctx context.Context, from io.Reader, after int, fn func(l lineAt, q parsed, err error) error) (lines int, err error) {
	limit := p.options.Limits.MaxInput + lineOverhead
	r := newLineReader(from, limit)
	for {
		line, err := r.next()
		if errors.Is(err, io.EOF) {
			return r.number, nil
		}
		if ctx.Err() != nil {
			return r.number, fmt.Errorf("reading %s: %w", p.Path, ctx.Err())
		}
		if r.number <= after && (err == nil || errors.Is(err, errLineTooLong)) {
			continue
		}
		var q parsed
		switch {
		case errors.Is(err, errLineTooLong):
			err = fieldErr("", "send less, or raise task.max_input", "the line is longer than %d bytes", limit)
		case err != nil:
			return r.number, fmt.Errorf("reading %s: %w", p.Path, err)
		default:
			q, err = parseLine(line, r.number, p.Job, &p.options)
		}
		if err := fn(lineAt{r.number, line}, q, err); err != nil {
			return r.number, err
		}
	}
}

// Close closes the file and removes the copy of standard input.
func (p *Plan) Close() error {
	if p.file == nil {
		return nil
	}
	err := p.file.Close()
	p.file = nil
	if p.temp != "" {
		err = errors.Join(err, os.Remove(p.temp))
	}
	if err != nil {
		return fmt.Errorf("closing the job file: %w", err)
	}
	return nil
}

// short returns 16 bytes of a digest, enough to tell any two strings apart.
func short(s string) [16]byte {
	sum := sha256.Sum256([]byte(s))
	return [16]byte(sum[:16])
}

// bitset has a bit for each line.
type bitset []uint64

func (b *bitset) set(i int) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) has(i int) bool { return i >= 0 && i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }

// contextReader fails once its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
