package wire

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// fastTask reads a task in a single pass: known members, spelled exactly, each at most
// once, in any order. It returns nil for anything else, valid or not.
//
// Unlike those of a result, the strings of a task do not share memory: processes keep ids
// of tasks for long, and must not keep what a client sent beside them.
func fastTask(b []byte) *task.Task {
	if !utf8.Valid(b) {
		return nil
	}
	q := &fastReader{b: b, spare: maxFastRest}
	t := &task.Task{}
	input := q.task(t)
	if q.gaveUp || q.peek() != 0 || q.at != len(b) || q.values > maxValues || len(b)-len(input) > maxFastRest {
		return nil
	}
	if input != nil {
		t.Input = bytes.Clone(input)
	}
	return t
}

// task reads all members but the input, which it returns.
func (q *fastReader) task(t *task.Task) (input []byte) {
	var seen uint32
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "task_id":
			bit, t.ID = 1<<0, q.str()
		case "tenant":
			bit, t.Tenant = 1<<1, q.str()
		case "model":
			bit, t.Model = 1<<2, q.str()
		case "endpoint":
			bit, t.Endpoint = 1<<3, q.str()
		case "input":
			bit, input = 1<<4, q.output()
		case "priority":
			bit, t.Priority = 1<<5, task.Priority(q.str())
		case "level":
			bit, t.Level = 1<<6, int(q.number())
		case "needs":
			bit, t.Needs = 1<<7, q.strs()
		case "depends_on":
			bit, t.DependsOn = 1<<8, q.strs()
		case "session_id":
			bit, t.SessionID = 1<<9, q.str()
		case "deadline":
			bit, t.Deadline = 1<<10, q.time()
		case "not_before":
			bit, t.NotBefore = 1<<11, q.time()
		case "max_attempts":
			bit, t.MaxAttempts = 1<<12, int(q.number())
		case "degrade":
			bit, t.Degrade = 1<<13, q.bool()
		case "callback":
			bit, t.Callback = 1<<14, q.callback()
		case "labels":
			bit, t.Labels = 1<<15, q.labels()
		case "job_id":
			bit, t.JobID = 1<<16, q.str()
		case "custom_id":
			bit, t.CustomID = 1<<17, q.str()
		case "trace_id":
			bit, t.TraceID = 1<<18, q.str()
		case "submitted_at":
			bit, t.SubmittedAt = 1<<19, q.time()
		case "progress":
			bit, t.Progress = 1<<20, q.progress()
		}
		q.once(&seen, bit)
	}
	return input
}

func (q *fastReader) progress() *task.Progress {
	p, seen := &task.Progress{}, uint32(0)
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "requeues":
			bit, p.Requeues = 1<<0, int(q.number())
		case "attempts":
			bit, p.Attempts = 1<<1, q.attempts()
		case "exclude":
			bit, p.Exclude = 1<<2, q.strs()
		case "backoff_ms":
			bit, p.BackoffMS = 1<<3, q.number()
		case "requested_model":
			bit, p.RequestedModel = 1<<4, q.str()
		case "moved":
			bit, p.Moved = 1<<5, q.bool()
		case "generation":
			bit, p.Generation = 1<<6, int(q.number())
		case "sent":
			bit, p.Sent = 1<<7, q.sent()
		}
		q.once(&seen, bit)
	}
	return p
}

func (q *fastReader) sent() []task.Header {
	list := []task.Header{}
	for more := q.open('[', ']'); more; more = q.more(']') {
		if len(list) == maxFastList {
			q.giveUp()
			break
		}
		h, seen := task.Header{}, uint32(0)
		for more := q.open('{', '}'); more; more = q.more('}') {
			bit := uint32(0)
			switch string(q.name()) {
			case "key":
				bit, h.Key = 1<<0, q.str()
			case "value":
				bit, h.Value = 1<<1, q.binary()
			}
			q.once(&seen, bit)
		}
		list = append(list, h)
	}
	return list
}

// binary reads base64, as encoding/json writes bytes.
func (q *fastReader) binary() []byte {
	b, err := base64.StdEncoding.DecodeString(q.str())
	if err != nil {
		q.giveUp()
	}
	return b
}

// strs reads a list of strings.
func (q *fastReader) strs() []string {
	list := []string{}
	for more := q.open('[', ']'); more; more = q.more(']') {
		if len(list) == maxFastList {
			q.giveUp()
			break
		}
		list = append(list, q.str())
	}
	return list
}

func (q *fastReader) bool() bool {
	q.peek()
	if end := strictjson.SkipWord(q.b, q.at, "true"); end > 0 {
		q.at = end
		return true
	}
	if end := strictjson.SkipWord(q.b, q.at, "false"); end > 0 {
		q.at = end
		return false
	}
	q.giveUp()
	return false
}
