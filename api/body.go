package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/batchyard/batchyard/api/bodies"
	"github.com/batchyard/batchyard/task"
	"github.com/batchyard/batchyard/task/wire"
)

// readBody reads a body of at most limit bytes; see [bodies.Budget.Read]. An error is a *Problem.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, func(), error) {
	b, release, err := s.budget.Read(w, r, limit)
	switch {
	case errors.Is(err, bodies.ErrFull):
		err = later("the server is busy with other request bodies; send the request again in a moment")
	case errors.Is(err, bodies.ErrBroken):
		err = problem(http.StatusBadRequest, "the body broke off; send the request again")
	case err != nil:
		err = problem(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes; send the tasks in several submits, or raise task.max_body", limit)
	}
	return b, release, err
}

// maxSmallBody bounds the bodies that change a setting or a task.
const maxSmallBody = 64 << 10

// decodeObject reads one JSON object strictly; the error is a *task.FieldError.
func decodeObject(body []byte, into any) error {
	body, err := wire.Content(body)
	if err != nil {
		return err
	}
	if err := task.CheckJSON(body); err != nil {
		return &task.FieldError{Problem: "the body is not one JSON object: " + clip(err.Error()), Remedy: "send one"}
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); len(b) == 0 || b[0] != '{' { // null would pass as an object without members
		return &task.FieldError{Problem: "the body is not a JSON object", Remedy: "send one"}
	}
	err = wire.Unmarshal(body, into)
	if err != nil {
		if whole := wire.WholeNumbers(body, into); whole != nil {
			err = wire.Unmarshal(whole, into)
		}
	}
	if err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) {
			return &task.FieldError{Field: typeErr.Field, Problem: "wrong type: JSON " + clip(typeErr.Value), Remedy: "/openapi.json describes the body"}
		}
		var fe *task.FieldError
		if errors.As(err, &fe) && fe.Field != "" {
			return &task.FieldError{Field: clipName(fe.Field), Problem: fe.Problem, Remedy: fe.Remedy}
		}
		return &task.FieldError{Problem: "the body is not a JSON object", Remedy: "send one"}
	}
	return nil
}

// readObject reads a small JSON object; the error is a *Problem.
func (s *Server) readObject(q *request, into any) error {
	if p := wantsJSON(q.r); p != nil {
		return p
	}
	body, release, err := s.readBody(q.w, q.r, maxSmallBody)
	defer release()
	if err != nil {
		return err
	}
	endless(q.w)
	if err := decodeObject(body, into); err != nil {
		return unfit(err)
	}
	return nil
}

// unfit answers a field that is wrong.
func unfit(err error) error {
	var fe *task.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	return fieldProblem(http.StatusUnprocessableEntity, []ProblemError{fieldError("", fe)}, 0)
}
