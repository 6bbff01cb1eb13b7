package verdict

import (
	"bytes"
	"encoding/json"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// listOf names the list that an answer of an endpoint must have something in.
var listOf = map[string]string{
	task.EndpointChat: "choices", task.EndpointCompletions: "choices", task.EndpointEmbeddings: "data",
	task.EndpointResponses: "output", task.EndpointModerations: "results",
	task.EndpointScore: "data", task.EndpointRerank: "results",
}

// answered finds the row of a 2xx; empty if it holds an answer.
func (r *Reply) answered() (k Kind, why string) {
	if err := task.CheckJSON(r.Body); err != nil {
		return BrokenJSON, err.Error()
	}
	name := listOf[r.Endpoint]
	var list, failed, status []byte
	object := wire.Members(bytes.TrimSpace(r.Body), func(key string, value []byte) bool {
		switch key {
		case name:
			list = value
		case "error":
			failed = value
		case "status":
			status = value
		}
		return true
	})
	if !object {
		return NoAnswer, "a JSON object"
	}
	if r.Endpoint == task.EndpointResponses {
		if k, why = stateOf(status); k != "" {
			return k, why
		}
	}
	if says(failed) {
		said := errorOf(r.Body)
		switch {
		case said.tooLong():
			return TooLong, said.text()
		case said.noModel():
			return NoModel, said.text()
		}
		return ErrorObject, said.text()
	}
	if name == "" {
		return "", ""
	}
	return entries(name, list, status)
}

// says reports whether the member "error" holds an error.
func says(v []byte) bool {
	switch string(v) {
	case "", "null", "false", `""`, "{}", "[]", "0":
		return false
	}
	return true
}

// stateOf finds the row of a response by its status. One that is incomplete holds what there was
// room for, like a chat that ended because of its length.
func stateOf(v []byte) (Kind, string) {
	var status string
	if len(v) == 0 || json.Unmarshal(v, &status) != nil {
		return "", ""
	}
	switch status {
	case "queued", "in_progress":
		return Unfinished, "it is " + status
	case "failed", "cancelled":
		return Unsuccess, status
	}
	return "", ""
}

// entries looks at the list that holds the answer.
func entries(name string, list, status []byte) (k Kind, why string) {
	n, aborted := 0, false
	whole := wire.Elements(list, func(e []byte) bool {
		n++
		if name == "choices" {
			aborted = aborted || isAborted(e)
		}
		return !aborted && (name == "choices" || n < 1)
	})
	switch {
	case aborted:
		return Aborted, ""
	case !whole || n == 0 && string(status) != `"incomplete"`:
		return NoAnswer, name
	}
	return "", ""
}

// isAborted reports whether a choice ended without being finished. stop, length, tool_calls,
// content_filter and what engines invent beside them are successes.
func isAborted(choice []byte) bool {
	aborted := false
	wire.Members(choice, func(key string, value []byte) bool {
		if key != "finish_reason" {
			return true
		}
		switch string(value) {
		case `"abort"`, `"aborted"`, `"error"`, `"cancelled"`:
			aborted = true
		}
		return false
	})
	return aborted
}
