package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/batchyard/batchyard/internal/text"
	"github.com/batchyard/batchyard/task"
)

// AnswerForm returns the answer of a device as a line of a job's output has it: without insignificant white
// space, and with the characters escaped at which some programs end a line.
func AnswerForm(answer []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, answer) != nil {
		return answer
	}
	return text.JSONLine(b.Bytes())
}

// OutputCheck compares the output of a job with its proof: first Take gets each proven row, then Compare reads
// the output.
//
// If the proof has the result of a task, every member of its line is compared with that. Else the log says how the
// task ended, and has the digest of its answer.
type OutputCheck struct {
	tasks  map[string]*provenTask
	byLine map[string]string // ids of lines in OpenAI's format → task ids
	openAI func(*task.Result) any

	Expected int64 // tasks of the job, as it was announced; 0: the log does not say
	Ended    int   // tasks that have ended, as the log says
	Proven   int   // lines with an answer of which every member is proven
	Others   int   // lines of tasks that did not succeed of which every member is proven
	Answers  int   // lines of which only the task, its success and the answer are proven
	Outcomes int   // lines of which only the task, that it did not succeed, and the class of the error are proven
	Problems Remarks
	Unproven Remarks // about lines that may be right
}

// Remarks are the first of many.
type Remarks struct {
	Count int
	First []string
}

func (r *Remarks) add(format string, args ...any) {
	if r.Count++; len(r.First) < 100 {
		r.First = append(r.First, fmt.Sprintf(format, args...))
	}
}

// provenTask is what the log says about a task.
type provenTask struct {
	ends    []task.State
	classes []string // of the errors that it failed with
	digests []Hash
	forms   []Hash // of answers as lines have them
	retried int    // how often it was run again on request
	lost    bool   // some end of it did not count
	runs    []provenRun
	line    bool
}

// provenRun is a result.
type provenRun struct {
	generation int
	state      task.State
	lines      [2]lineDigest // by format
}

// Indexes into provenRun.lines.
const (
	ownFormat = iota
	openAIFormat
)

// NewOutputCheck returns a check of the output of the job that a proof is about. openAI returns a result as
// a line of OpenAI's format.
func NewOutputCheck(openAI func(*task.Result) any) *OutputCheck {
	return &OutputCheck{tasks: map[string]*provenTask{}, byLine: map[string]string{}, openAI: openAI}
}

var endsOf = map[task.Action]task.State{task.TaskSucceeded: task.Success, task.TaskFailed: task.Failed, task.TaskCancelled: task.Cancelled, task.TaskExpired: task.Expired}

// Take takes a proven row.
func (o *OutputCheck) Take(r *ProvenColumns) error {
	for _, res := range r.Results {
		if err := o.takeResult(res); err != nil {
			return err
		}
	}
	action := task.Action(r.Text(ColAction))
	if r.Aside {
		return nil
	}
	if action == task.JobSubmitted {
		var d task.JobSpec
		if json.Unmarshal(r.Fields[ColDetail], &d) == nil {
			o.Expected = max(o.Expected, d.Tasks)
		}
		return nil
	}
	id := r.Text(ColTask)
	if id == "" {
		return nil
	}
	t := o.task(r.Text(ColTenant), id)
	state, end := endsOf[action]
	switch {
	case end:
		t.ends = append(t.ends, state)
		if c := r.Text(ColErrorClass); state == task.Failed && !slices.Contains(t.classes, c) {
			t.classes = append(t.classes, c)
		}
	case action == task.TaskRetried && r.Text(ColOutcome) == string(task.OutcomeOK):
		t.retried++
	case action == task.ResultDuplicate:
		t.lost = true
	case action == task.AttemptSucceeded && len(r.Fields[ColOutputSHA256]) == sha256.Size:
		t.digests = append(t.digests, Hash(r.Fields[ColOutputSHA256]))
		if r.Answer != nil {
			t.forms = append(t.forms, sha256.Sum256(AnswerForm(r.Answer)))
		}
	}
	return nil
}

// task returns what is known about a task.
func (o *OutputCheck) task(tenant, id string) *provenTask {
	t := o.tasks[id]
	if t == nil {
		t = &provenTask{}
		o.tasks[id] = t
		h := task.Key{Tenant: tenant, ID: id}.Hash()
		o.byLine["batch_req_"+hex.EncodeToString(h[:12])] = id
	}
	return t
}

// takeResult keeps the digests of the members of a result's line.
func (o *OutputCheck) takeResult(r *task.Result) error {
	run := provenRun{generation: r.Generation, state: r.State}
	for format, line := range []any{r, o.openAI(r)} {
		var b bytes.Buffer
		e := json.NewEncoder(text.JSONLines(&b))
		e.SetEscapeHTML(false)
		err := e.Encode(line)
		if err == nil {
			var l outputLine
			l, err = readOutputLine(b.Bytes())
			if err == nil {
				run.lines[format] = l.digest()
			}
		}
		if err != nil {
			return fmt.Errorf("the result of task %s of tenant %s in the proof: %w", Short(r.TaskID), Short(r.Tenant), err)
		}
	}
	t := o.task(r.Tenant, r.TaskID)
	t.runs = append(t.runs, run)
	slices.SortFunc(t.runs, func(x, y provenRun) int { return cmp.Compare(x.generation, y.generation) })
	return nil
}

func (t *provenTask) ended() bool { return len(t.ends) > 0 || len(t.runs) > 0 }

// latest returns the result that counts, or nil if the proof does not have it.
func (t *provenTask) latest() *provenRun {
	if n := len(t.runs); n > 0 && t.runs[n-1].generation >= t.retried {
		return &t.runs[n-1]
	}
	return nil
}

// maxOutputLine bounds a line of an output.
const maxOutputLine = maxProofLine

// Compare reads an output.
func (o *OutputCheck) Compare(r io.Reader) error {
	for _, t := range o.tasks {
		if t.ended() {
			o.Ended++
		}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxOutputLine)
	n := 0
	for lines.Scan() {
		if n++; len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		o.line(n, lines.Bytes())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the output: %w", err)
	}
	for id, t := range o.tasks {
		if t.ended() && !t.line {
			o.Problems.add("task %s has ended, as the log says, and the output has no line of it", id)
		}
	}
	return nil
}

func (o *OutputCheck) line(n int, b []byte) {
	l, err := readOutputLine(b)
	if err != nil {
		o.Problems.add("line %d: %s", n, err)
		return
	}
	id := l.text("task_id")
	if l.format == openAIFormat {
		id = o.byLine[l.text("id")]
	}
	t := o.tasks[id]
	switch {
	case t == nil || !t.ended():
		o.Problems.add("line %d is about a task (%s) that has not ended, as far as the proof says", n, Short(l.text("task_id")+l.text("id")))
		return
	case t.line:
		o.Problems.add("line %d is about task %s, as a line before it", n, id)
		return
	}
	t.line = true
	if run := t.latest(); run != nil {
		o.whole(n, id, &l, t, run)
		return
	}
	o.partly(n, id, &l, t)
}

// whole compares a line with the result that counts.
func (o *OutputCheck) whole(n int, id string, l *outputLine, t *provenTask, run *provenRun) {
	have := l.digest()
	switch same := have.all == run.lines[l.format].all; {
	case same && run.state == task.Success:
		o.Proven++
		return
	case same:
		o.Others++
		return
	}
	for _, old := range t.runs[:len(t.runs)-1] {
		if have.all == old.lines[l.format].all {
			o.Problems.add("line %d is of generation %d of task %s: it was run again, and what counts is generation %d", n, old.generation, id, run.generation)
			return
		}
	}
	o.Problems.add("line %d is not the result of task %s (%s) whose digest is in the log: %s differ", n, id, run.state, differing(l.format, &have, &run.lines[l.format]))
}

// partly compares a line with the events of a task whose result is not in the proof.
func (o *OutputCheck) partly(n int, id string, l *outputLine, t *provenTask) {
	state, class, answer := l.outcome()
	sure := !t.lost && t.retried == 0
	for _, s := range t.ends {
		sure = sure && s == t.ends[0]
	}
	switch sum := sha256.Sum256(answer); {
	case sure && !slices.Contains(t.ends, state):
		o.Problems.add("line %d says another outcome of task %s than the log: that says %s", n, id, t.ends[0])
	case state == task.Success && !slices.Contains(t.digests, sum) && !slices.Contains(t.forms, sum):
		o.Problems.add("line %d: the answer of task %s is not one whose digest is in the log", n, id)
	case !sure:
		o.Unproven.add("line %d: the log has several ends of task %s, and the proof does not have the result that counts", n, id)
	case state == task.Success:
		o.Answers++
	case state != task.Success && answer != nil:
		o.Unproven.add("line %d: the proof has no digest of the response of task %s, which did not succeed", n, id)
	case state == task.Failed && !slices.Contains(t.classes, class):
		o.Problems.add("line %d says that task %s failed with %q: the log says %q", n, id, Short(class), t.classes)
	default:
		o.Outcomes++
	}
}
