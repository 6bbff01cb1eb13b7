package task_test

import (
	"errors"
	"fmt"

	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// A record is a task in JSON or MessagePack. A field that does not exist is an
// error: most likely it is misspelled.
func ExampleDecodeTask() {
	t, err := wire.DecodeTask([]byte(`{"model":"llama-3","input":{"prompt":"Hello"},"priority":"low"}`), wire.ContentJSON)
	fmt.Println(t.Model, t.Priority, string(t.Input), err)

	_, err = wire.DecodeTask([]byte(`{"model":"llama-3","input":{},"prioritty":"low"}`), wire.ContentJSON)
	var field *task.FieldError
	fmt.Println(errors.As(err, &field), field.Field)
	// Output:
	// llama-3 low {"prompt":"Hello"} <nil>
	// true prioritty
}

// A task in MessagePack says the same as in JSON.
func ExampleEncodeTask() {
	t := &task.Task{Model: "llama-3", Input: task.Input(`{"prompt":"Hello"}`), Level: 7}
	for _, format := range []string{wire.ContentJSON, wire.ContentMsgpack} {
		b, err := wire.EncodeTask(t, format)
		if err != nil {
			fmt.Println(err)
			return
		}
		again, err := wire.DecodeTask(b, "") // the first byte tells the format
		fmt.Println(again.Model, again.Level, string(again.Input), err)
	}
	// Output:
	// llama-3 7 {"prompt":"Hello"} <nil>
	// llama-3 7 {"prompt":"Hello"} <nil>
}
