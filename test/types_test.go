package test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/batchyard/batchyard"
	"github.com/batchyard/batchyard/api"
	"github.com/batchyard/batchyard/callbacks"
	"github.com/batchyard/batchyard/task"
)

// The client has types of its own, so that it does not pull in the server. They
// must have the fields of the server's, of the same kinds.
func TestTypesOfTheClientAreTheServers(t *testing.T) {
	t.Parallel()
	for name, pair := range map[string]struct{ client, server any }{
		"task":          {batchyard.TaskStatus{}, api.Status{}},
		"event":         {batchyard.Event{}, api.TaskEvent{}},
		"why":           {batchyard.Why{}, api.Why{}},
		"reprioritized": {batchyard.Reprioritized{}, api.Reprioritized{}},
		"priority":      {batchyard.PriorityChange{}, api.PriorityIn{}},
		"job":           {batchyard.JobProgress{}, api.Job{}},
		"device":        {batchyard.Device{}, api.DeviceStatus{}},
		"absent device": {batchyard.AbsentDevice{}, api.AbsentDevice{}},
		"drain":         {batchyard.DrainState{}, api.Drained{}},
		"policy":        {batchyard.PolicyStatus{}, api.PolicyStatus{}},
		"set policy":    {batchyard.PolicySetting{}, api.PolicyIn{}},
		"field problem": {batchyard.FieldProblem{}, api.ProblemError{}},
	} {
		require.Equal(t, shape(reflect.TypeOf(pair.server)), shape(reflect.TypeOf(pair.client)), name)
	}
	// A callback leaves out what is known of the task without it.
	got := shape(reflect.TypeFor[batchyard.Callback]())
	got["/data/attempts"] = "json.RawMessage" // callbacks passes on what is in Postgres
	for field, kind := range shape(reflect.TypeFor[callbacks.Payload]()) {
		require.Equal(t, kind, got[field], field)
	}
}

// shape is what JSON looks like that is made of a type: the kind of each field, by
// its path.
func shape(t reflect.Type) map[string]string {
	fields := map[string]string{}
	addShape(fields, "", t)
	return fields
}

func addShape(fields map[string]string, path string, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer:
		addShape(fields, path, t.Elem())
		return
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 {
			addShape(fields, path+"[]", t.Elem())
			return
		}
	}
	if t.Kind() != reflect.Struct || t.Implements(reflect.TypeFor[json.Marshaler]()) || t.PkgPath() == reflect.TypeFor[task.Task]().PkgPath() {
		fields[path] = kindOf(t)
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			addShape(fields, path, f.Type)
		case f.IsExported() && name != "-":
			if options != "" && f.Type.Kind() != reflect.Slice && f.Type.Kind() != reflect.Map {
				name += "," + options
			}
			addShape(fields, path+"/"+name, f.Type)
		}
	}
}

// kindOf is the same for types that are the same in JSON.
func kindOf(t reflect.Type) string {
	if t.Kind() == reflect.Struct || t.Implements(reflect.TypeFor[json.Marshaler]()) {
		return t.String()
	}
	return t.Kind().String()
}
