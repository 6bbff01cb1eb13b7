package audit

import (
	"bufio"
	"bytes"
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
type OutputCheck struct {
	tasks    map[string]*provenTask
	byLine   map[string]string // ids of lines in OpenAI's format → task ids
	Expected int64             // tasks of the job, as it was announced; 0: the log does not say
	Ended    int               // tasks that have ended, as the log says
	Proven   int               // lines whose answer has the digest that is in the log
	Others   int               // lines of tasks that did not succeed: the log has how they ended, and no digest
	Problems []string          // bounded, unlike Count
	Count    int
}

// provenTask is what the log says about a task.
type provenTask struct {
	ends    []task.State
	digests []Hash
	forms   []Hash // of answers as lines have them
	line    bool
}

// NewOutputCheck returns a check of the output of the job that a proof is about.
func NewOutputCheck() *OutputCheck {
	return &OutputCheck{tasks: map[string]*provenTask{}, byLine: map[string]string{}}
}

var endsOf = map[task.Action]task.State{task.TaskSucceeded: task.Success, task.TaskFailed: task.Failed, task.TaskCancelled: task.Cancelled, task.TaskExpired: task.Expired}

// Take takes a proven row.
func (o *OutputCheck) Take(r *ProvenColumns) error {
	action := task.Action(r.Text(ColAction))
	if action == task.JobSubmitted {
		var d task.JobSpec
		if json.Unmarshal(r.Fields[ColDetail], &d) == nil {
			o.Expected = max(o.Expected, d.Tasks)
		}
		return nil
	}
	id, tenant := r.Text(ColTask), r.Text(ColTenant)
	if id == "" {
		return nil
	}
	t := o.tasks[id]
	if t == nil {
		t = &provenTask{}
		o.tasks[id] = t
		h := task.Key{Tenant: tenant, ID: id}.Hash()
		o.byLine["batch_req_"+hex.EncodeToString(h[:12])] = id
	}
	if state, ok := endsOf[action]; ok {
		if len(t.ends) == 0 {
			o.Ended++
		}
		if !slices.Contains(t.ends, state) {
			t.ends = append(t.ends, state)
		}
	}
	if sum := r.Fields[ColOutputSHA256]; action == task.AttemptSucceeded && len(sum) == sha256.Size {
		t.digests = append(t.digests, Hash(sum))
		if r.Answer != nil {
			t.forms = append(t.forms, sha256.Sum256(AnswerForm(r.Answer)))
		}
	}
	return nil
}

// outputLine is a line of a job's output, in either format.
type outputLine struct {
	ID       string          `json:"id"`
	TaskID   string          `json:"task_id"`
	State    task.State      `json:"state"`
	Output   json.RawMessage `json:"output"`
	Response *struct {
		Status int             `json:"status_code"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct {
		Code string `json:"code"`
	} `json:"error"`
}

// maxOutputLine bounds a line of an output.
const maxOutputLine = maxProofLine

// Compare reads an output.
func (o *OutputCheck) Compare(r io.Reader) error {
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
		if len(t.ends) > 0 && !t.line {
			o.problem("task %s has ended, as the log says, and the output has no line of it", id)
		}
	}
	return nil
}

func (o *OutputCheck) problem(format string, args ...any) {
	if o.Count++; len(o.Problems) < 100 {
		o.Problems = append(o.Problems, fmt.Sprintf(format, args...))
	}
}

func (o *OutputCheck) line(n int, b []byte) {
	var l outputLine
	if err := json.Unmarshal(b, &l); err != nil {
		o.problem("line %d is not JSON", n)
		return
	}
	id, answer, succeeded := l.TaskID, l.Output, l.State == task.Success
	if id == "" {
		id = o.byLine[l.ID]
		succeeded = l.Error == nil && l.Response != nil && l.Response.Status < 400
		if l.Response != nil {
			answer = l.Response.Body
		}
	}
	t := o.tasks[id]
	switch {
	case t == nil || len(t.ends) == 0:
		o.problem("line %d is about a task (%s%s) that has not ended, as far as the proof says", n, l.TaskID, l.ID)
	case t.line:
		o.problem("line %d is about task %s, as a line before it", n, id)
	case succeeded != slices.Contains(t.ends, task.Success) && len(t.ends) == 1:
		o.problem("line %d says another outcome of task %s than the log: that says %s", n, id, t.ends[0])
	case !succeeded:
		o.Others++
	case slices.Contains(t.digests, sha256.Sum256(answer)) || slices.Contains(t.forms, sha256.Sum256(answer)):
		o.Proven++
	default:
		o.problem("line %d: the answer of task %s is not the one whose digest is in the log", n, id)
	}
	if t != nil {
		t.line = true
	}
}
