// Package payload makes the bodies of requests to devices from the inputs of tasks, one or many in a request, and
// splits the answer to many.
package payload

import (
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// dropped reports whether a member of an input is left out: those that ask for a streamed answer, or for
// one that comes later.
func dropped(endpoint, member string) bool {
	switch member {
	case "stream", "stream_options":
		return true
	case "background":
		return endpoint == task.EndpointResponses
	}
	return false
}

// Body returns the request body of a task: its input with the task's present model, or the
// device's own name of it if there is one, and without the members that ask for another kind of answer.
func Body(t *task.Task, own string) ([]byte, error) {
	own = cmp.Or(own, t.Model)
	unchanged, models := true, 0
	whole := wire.Members(t.Input, func(key string, value []byte) bool {
		switch {
		case key == "model":
			var model string
			models++
			unchanged = models == 1 && json.Unmarshal(value, &model) == nil && model == own
		case dropped(t.Endpoint, key):
			unchanged = false
		}
		return unchanged
	})
	if !whole {
		return nil, fmt.Errorf("reading the input of task %s: not a JSON object", t.Key())
	}
	if unchanged && models == 1 {
		return t.Input, nil
	}
	model, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(t.Input)+len(model)+16)
	out = append(append(out, `{"model":`...), model...)
	wire.Members(t.Input, func(key string, value []byte) bool {
		if key != "model" && !dropped(t.Endpoint, key) {
			out = appendMember(out, key, value)
		}
		return true
	})
	return append(out, '}'), nil
}

// appendMember appends a member to a JSON object or array under construction.
func appendMember(out []byte, key string, value []byte) []byte {
	if c := out[len(out)-1]; c != '{' && c != '[' {
		out = append(out, ',')
	}
	quoted, err := json.Marshal(key)
	if err != nil { // cannot happen: any string can be encoded
		return out
	}
	out = append(append(out, quoted...), ':')
	return append(out, value...)
}

// maxMembers bounds the members of a request that can be grouped with others.
const maxMembers = 64

// bodyMembers returns the members of the request body of a task, with the device's name of the model.
func bodyMembers(t *task.Task, own string) (map[string]json.RawMessage, error) {
	own = cmp.Or(own, t.Model)
	members := map[string]json.RawMessage{}
	n := 0
	if !wire.Members(t.Input, func(key string, value []byte) bool {
		members[key] = value
		n++
		return n <= maxMembers
	}) {
		return nil, fmt.Errorf("reading the input of task %s: not a JSON object", t.Key())
	}
	if n > maxMembers {
		return nil, fmt.Errorf("the input of task %s has more than %d members", t.Key(), maxMembers)
	}
	model, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	members["model"] = model
	delete(members, "stream") // answers are not streamed
	delete(members, "stream_options")
	return members, nil
}
