package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/batchyard/batchyard/internal/strictjson"
	"github.com/batchyard/batchyard/task"
)

// outputLine is a line of a job's output. It has exactly the members of its format, each once: programs that read
// it differ in which of two members of the same name they take, and in whether case matters.
type outputLine struct {
	format  int
	members map[string]json.RawMessage // those of objects in it with the name of the object before theirs: error.code
}

// openAIMembers are the members of a line in OpenAI's format; those within others may only be there together.
var openAIMembers = []string{"id", "custom_id", "response", "response.status_code", "response.request_id", "response.body", "error", "error.code", "error.message"}

// ownMembers are the members that a [task.Result] may have as JSON.
var ownMembers = []string{
	"task_id", "tenant", "state", "model", "requested_model", "endpoint", "device_id", "status", "output", "error", "error.class", "error.message", "attempts", "usage", "usage.input_tokens",
	"usage.output_tokens", "priority", "job_id", "custom_id", "labels", "callback", "trace_id", "generation", "fingerprint", "submitted_at", "assigned_at", "started_at", "finished_at",
}

// knownMembers are the members by format.
var knownMembers = [2][]string{ownFormat: ownMembers, openAIFormat: openAIMembers}

// holdsMembers reports whether the members of an object are compared one by one.
func holdsMembers(name string) bool { return name == "response" || name == "error" || name == "usage" }

// maxLineDepth is how deep a line may be nested: an answer, within its response, within the line.
const maxLineDepth = task.MaxInputDepth + 2

// readOutputLine reads a line strictly.
func readOutputLine(b []byte) (l outputLine, err error) {
	if err := strictjson.Check(b, maxLineDepth); err != nil {
		return l, fmt.Errorf("it is not JSON: %w", err)
	}
	l.members = map[string]json.RawMessage{}
	if err := l.read("", b); err != nil {
		return l, err
	}
	if _, own := l.members["task_id"]; !own {
		l.format = openAIFormat
	}
	for name := range l.members {
		if !slices.Contains(knownMembers[l.format], name) {
			return l, fmt.Errorf("it has a member %q, which no line of an output has", Short(name))
		}
	}
	if l.format == openAIFormat {
		for _, name := range openAIMembers {
			object, _, within := strings.Cut(name, ".")
			if _, ok := l.members[name]; !ok && (!within || isObject(l.members[object])) {
				return l, fmt.Errorf("it has no member %q", name)
			}
		}
	}
	return l, nil
}

func isObject(b []byte) bool { return bytes.HasPrefix(b, []byte("{")) }

// read adds the members of an object, which is valid JSON.
func (l *outputLine) read(prefix string, b []byte) error {
	at := strictjson.SkipSpace(b, 0)
	if !isObject(b[at:]) {
		return errors.New("it is not a JSON object")
	}
	if at = strictjson.SkipSpace(b, at+1); b[at] == '}' {
		return nil
	}
	for {
		at = strictjson.SkipSpace(b, at)
		end := strictjson.SkipString(b, at)
		var name string
		if err := json.Unmarshal(b[at:end], &name); err != nil {
			return fmt.Errorf("a name of a member: %w", err)
		}
		name = prefix + name
		from := strictjson.SkipSpace(b, strictjson.SkipSpace(b, end)+1)
		at = strictjson.SkipValue(b, from, maxLineDepth)
		if _, twice := l.members[name]; twice {
			return fmt.Errorf("it has the member %q twice", Short(name))
		}
		l.members[name] = json.RawMessage(b[from:at])
		if holdsMembers(name) && isObject(b[from:at]) {
			if err := l.read(name+".", b[from:at]); err != nil {
				return err
			}
		}
		if at = strictjson.SkipSpace(b, at); b[at] == '}' {
			return nil
		}
		at++ // a comma
	}
}

// lineDigest says what a line has, in little memory.
type lineDigest struct {
	all   Hash     // of the digests of all members
	hints []uint32 // a part of the digest of each, to say which differ; 0: there is none
}

// digest returns the digest of the members in the form that lines have, in which white space means nothing. Of an object
// whose members are among them it covers that it is there.
func (l *outputLine) digest() (d lineDigest) {
	h := sha256.New()
	d.hints = make([]uint32, len(knownMembers[l.format]))
	for i, name := range knownMembers[l.format] {
		value, ok := l.members[name]
		if !ok {
			h.Write([]byte{0})
			continue
		}
		if holdsMembers(name) && isObject(value) {
			value = []byte("{")
		}
		sum := sha256.Sum256(AnswerForm(value))
		h.Write(append([]byte{1}, sum[:]...))
		d.hints[i] = binary.BigEndian.Uint32(sum[:]) | 1
	}
	h.Sum(d.all[:0])
	return d
}

// differing returns the names of members of lines of the same format that are not the same.
func differing(format int, x, y *lineDigest) (names []string) {
	for i, name := range knownMembers[format] {
		if x.hints[i] != y.hints[i] {
			names = append(names, name)
		}
	}
	return names
}

// text returns a member that is a string, else "".
func (l *outputLine) text(name string) (s string) {
	if json.Unmarshal(l.members[name], &s) != nil {
		return ""
	}
	return s
}

// outcome returns how the task ended, as the line says, the class of its error, and what the device answered.
func (l *outputLine) outcome() (state task.State, class string, answer []byte) {
	if l.format == ownFormat {
		if state = task.State(l.text("state")); state == task.Success && l.members["error"] != nil {
			state = task.Failed
		}
		return state, l.text("error.class"), l.members["output"]
	}
	var status int
	if json.Unmarshal(l.members["response.status_code"], &status) != nil {
		status = 0
	}
	answer = l.members["response.body"]
	switch code := l.text("error.code"); {
	case string(l.members["error"]) == "null" && status >= 200 && status < 400:
		return task.Success, "", answer
	case code == "batch_expired" && answer == nil:
		return task.Expired, "", nil
	case code == "batch_cancelled" && answer == nil:
		return task.Cancelled, "", nil
	default:
		return task.Failed, code, answer
	}
}
