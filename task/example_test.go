package task_test

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/batchyard/batchyard/task"
)

// A task needs a model and an input; the rest has defaults.
func ExampleTask() {
	t := &task.Task{
		ID:       "report-2026-11-30",
		Model:    "llama-3",
		Input:    task.Input(`{"messages":[{"role":"user","content":"Sum it up."}]}`),
		Priority: task.High,
		Needs:    []string{"gpu"},
		Callback: &task.Callback{URL: "https://example.org/hook"},
	}
	t.Normalize(time.Now())
	fmt.Println(t.Key(), t.Endpoint)
	fmt.Println(t.Validate(task.Limits{MaxInput: 1 << 20}))
	// Output:
	// default/report-2026-11-30 /v1/chat/completions
	// <nil>
}

// Validate says which field is wrong, what is wrong with it, and what to do.
func ExampleTask_Validate() {
	t := &task.Task{Model: "llama-3", Input: task.Input(`{}`), Priority: "urgent"}
	t.Normalize(time.Now())
	err := t.Validate(task.Limits{})
	var field *task.FieldError
	fmt.Println(errors.As(err, &field), field.Field)

	t.Priority = task.High
	t.Callback = &task.Callback{URL: "ftp://example.org"}
	errors.As(t.Validate(task.Limits{}), &field)
	fmt.Println(field.Field)
	// Output:
	// true priority
	// callback.url
}

// The input may be no larger than the limits say.
func ExampleLimits() {
	t := &task.Task{Model: "llama-3", Input: task.Input(`{"prompt":"` + strings.Repeat("a", 2000) + `"}`)}
	t.Normalize(time.Now())
	for _, limit := range []int{1 << 10, 1 << 20} {
		fmt.Println(limit, t.Validate(task.Limits{MaxInput: limit}) == nil)
	}
	// Output:
	// 1024 false
	// 1048576 true
}

func ExampleParseState() {
	s, err := task.ParseState("success")
	fmt.Println(s, s.Terminal(), err)
	s, err = task.ParseState("RUNNING")
	fmt.Println(s, s.Terminal(), err)
	_, err = task.ParseState("done")
	fmt.Println(err != nil)
	// Output:
	// SUCCESS true <nil>
	// RUNNING false <nil>
	// true
}

// A running task that fails goes back to wait, until its attempts are used up.
func ExampleState_CanBecome() {
	fmt.Println(task.Running.CanBecome(task.Pending))
	fmt.Println(task.Pending.CanBecome(task.Success))
	fmt.Println(task.Success.CanBecome(task.Pending))
	// Output:
	// true
	// false
	// false
}

// Events of different stages may arrive in any order; the state with the highest
// number is the latest.
func ExampleSequence() {
	assigned := task.Sequence(task.Assigned, 1)
	running := task.Sequence(task.Running, 1)
	retried := task.Sequence(task.Assigned, 2)
	fmt.Println(assigned < running, running < retried, retried < task.Sequence(task.Failed, 2))
	// Output: true true true
}
