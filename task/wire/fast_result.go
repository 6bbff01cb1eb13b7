package wire

import (
	"bytes"
	"time"
	"unicode/utf8"

	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// Limits of the fast reader, far above what results need: it may give up, and then the
// slow path allocates again.
const (
	maxFastList = 128
	maxFastRest = 128 << 10 // bytes besides the output
	fastHead    = 4 << 10   // bytes of a foreign result that are assumed to precede its output
)

// fastResult reads a result as [EncodeResult] writes it: known members, spelled exactly,
// each at most once, in any order. It returns nil for anything else, valid or not.
func fastResult(b []byte) *task.Result {
	if !utf8.Valid(b) {
		return nil
	}
	// EncodeResult writes the output last; strings alias a copy of what precedes it.
	head := bytes.Index(b, []byte(`,"output":`))
	if head < 0 || head > maxFastRest {
		head = min(len(b), fastHead)
	}
	q := &fastReader{b: b, text: string(b[:head]), spare: maxFastRest}
	r := &task.Result{}
	output := q.result(r)
	if q.gaveUp || q.peek() != 0 || q.at != len(b) || q.values > maxValues || len(b)-len(output) > maxFastRest {
		return nil
	}
	if output != nil {
		r.Output = bytes.Clone(output)
	}
	return r
}

// result reads all members but the output, which it returns.
func (q *fastReader) result(r *task.Result) (output []byte) {
	var seen uint32
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "task_id":
			bit, r.TaskID = 1<<0, q.str()
		case "tenant":
			bit, r.Tenant = 1<<1, q.str()
		case "state":
			bit, r.State = 1<<2, task.State(q.str())
		case "model":
			bit, r.Model = 1<<3, q.str()
		case "requested_model":
			bit, r.RequestedModel = 1<<4, q.str()
		case "endpoint":
			bit, r.Endpoint = 1<<5, q.str()
		case "device_id":
			bit, r.DeviceID = 1<<6, q.str()
		case "status":
			bit, r.Status = 1<<7, int(q.number())
		case "output":
			bit, output = 1<<8, q.output()
		case "error":
			bit, r.Error = 1<<9, q.fault()
		case "attempts":
			bit, r.Attempts = 1<<10, q.attempts()
		case "usage":
			bit, r.Usage = 1<<11, q.usage()
		case "priority":
			bit, r.Priority = 1<<12, task.Priority(q.str())
		case "job_id":
			bit, r.JobID = 1<<13, q.str()
		case "custom_id":
			bit, r.CustomID = 1<<14, q.str()
		case "labels":
			bit, r.Labels = 1<<15, q.labels()
		case "callback":
			bit, r.Callback = 1<<16, q.callback()
		case "trace_id":
			bit, r.TraceID = 1<<17, q.str()
		case "submitted_at":
			bit, r.SubmittedAt = 1<<18, q.time()
		case "assigned_at":
			bit, r.AssignedAt = 1<<19, q.time()
		case "started_at":
			bit, r.StartedAt = 1<<20, q.time()
		case "finished_at":
			bit, r.FinishedAt = 1<<21, q.time()
		case "generation":
			bit, r.Generation = 1<<22, int(q.number())
		case "fingerprint":
			bit, r.Fingerprint = 1<<23, q.str()
		}
		q.once(&seen, bit)
	}
	return output
}

// output returns a value that passes [task.CheckJSON].
func (q *fastReader) output() []byte {
	v := q.raw(task.MaxInputDepth)
	if string(v) == "null" {
		return nil
	}
	return v
}

func (q *fastReader) fault() *task.Error {
	e, seen := &task.Error{}, uint32(0)
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "class":
			bit, e.Class = 1<<0, task.ErrorClass(q.str())
		case "message":
			bit, e.Message = 1<<1, q.str()
		}
		q.once(&seen, bit)
	}
	return e
}

func (q *fastReader) usage() (u task.Usage) {
	var seen uint32
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "input_tokens":
			bit, u.InputTokens = 1<<0, q.number()
		case "output_tokens":
			bit, u.OutputTokens = 1<<1, q.number()
		}
		q.once(&seen, bit)
	}
	return u
}

func (q *fastReader) callback() *task.Callback {
	c, seen := &task.Callback{}, uint32(0)
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		if string(q.name()) == "url" {
			bit, c.URL = 1<<0, q.str()
		}
		q.once(&seen, bit)
	}
	return c
}

func (q *fastReader) labels() map[string]string {
	m := map[string]string{}
	for more := q.open('{', '}'); more; more = q.more('}') {
		k := q.str()
		if q.peek() != ':' || len(m) == task.MaxLabels {
			q.giveUp()
			break
		}
		q.at++
		before := len(m)
		if m[k] = q.str(); len(m) == before { // it was there
			q.giveUp()
		}
	}
	return m
}

func (q *fastReader) attempts() []task.Attempt {
	as := []task.Attempt{}
	for more := q.open('[', ']'); more; more = q.more(']') {
		if len(as) == maxFastList {
			q.giveUp()
			break
		}
		as = append(as, task.Attempt{})
		q.attempt(&as[len(as)-1])
	}
	return as
}

func (q *fastReader) attempt(a *task.Attempt) {
	var seen uint32
	for more := q.open('{', '}'); more; more = q.more('}') {
		bit := uint32(0)
		switch string(q.name()) {
		case "number":
			bit, a.Number = 1<<0, int(q.number())
		case "model":
			bit, a.Model = 1<<1, q.str()
		case "device_id":
			bit, a.DeviceID = 1<<2, q.str()
		case "class":
			bit, a.Class = 1<<3, task.ErrorClass(q.str())
		case "status":
			bit, a.Status = 1<<4, int(q.number())
		case "message":
			bit, a.Message = 1<<5, q.str()
		case "at":
			bit, a.At = 1<<6, q.time()
		case "duration_ms":
			bit, a.Duration = 1<<7, q.number()
		}
		q.once(&seen, bit)
	}
}

// time reads a time as encoding/json does.
func (q *fastReader) time() (t time.Time) {
	if q.peek() != '"' {
		q.giveUp()
		return t
	}
	begin := q.at + 1
	end := strictjson.SkipPlain(q.b, begin)
	if end >= len(q.b) || q.b[end] != '"' {
		q.giveUp()
		return t
	}
	q.at = end + 1
	t, ok := fastTime(q.b[begin:end])
	if !ok && t.UnmarshalText(q.b[begin:end]) != nil {
		q.giveUp()
		return time.Time{}
	}
	return t
}

// fastTime reads a time as Batchyard writes it, 2026-01-31T12:00:00.123456Z with up to
// nine decimals. A result has five times, and each would otherwise take longer than a
// string.
func fastTime(b []byte) (t time.Time, ok bool) {
	const form = "0000-00-00T00:00:00Z"
	if len(b) < len(form) || b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' || b[len(b)-1] != 'Z' {
		return t, false
	}
	bad := false
	two := func(at int) int {
		x, y := b[at]-'0', b[at+1]-'0'
		bad = bad || x > 9 || y > 9
		return 10*int(x) + int(y)
	}
	year, month, day := 100*two(0)+two(2), two(5), two(8)
	hour, minute, second := two(11), two(14), two(17)
	ns, ok := fastFraction(b[len(form)-1 : len(b)-1])
	// Days that may not exist, such as 30 February, are left to package time.
	if bad || !ok || month < 1 || month > 12 || day < 1 || day > 31 || day > 28 && month == 2 || day == 31 && (month == 4 || month == 6 || month == 9 || month == 11) || hour > 23 || minute > 59 || second > 59 {
		return t, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, ns, time.UTC), true
}

// fastFraction reads the fraction of a second: nothing, or a point and up to nine digits.
func fastFraction(b []byte) (ns int, ok bool) {
	if len(b) == 0 {
		return 0, true
	}
	if b[0] != '.' || len(b) == 1 || len(b) > 10 {
		return 0, false
	}
	for i := 1; i < 10; i++ {
		c := byte(0)
		if i < len(b) {
			c = b[i] - '0'
		}
		if c > 9 {
			return 0, false
		}
		ns = 10*ns + int(c)
	}
	return ns, true
}
